"""The backbones that SFNet and SFNet-Lite were published with, and how their releases name them."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from rtseg.errors import ConfigError
from rtseg.models.backbones.dfnet import DFNet, dfnet
from rtseg.models.backbones.resnet import DEEP_STEM, ResNet, resnet
from rtseg.models.backbones.stdc import CLASSIFIER, STDC, stdc
from rtseg.models.backbones.stdc import RULES as STDC_RULES
from rtseg.models.context import PyramidPooling

Backbone = ResNet | STDC | DFNet

RULES = (
    *STDC_RULES,
    # The deep stem: a convolution, a norm and an activation thrice, flat, the last norm outside.
    (r"^layer0\.0\.([01])\.", r"backbone.stem.0.\1."),
    (r"^layer0\.0\.3\.", "backbone.stem.1.0."),
    (r"^layer0\.0\.4\.", "backbone.stem.1.1."),
    (r"^layer0\.0\.6\.", "backbone.stem.2.0."),
    (r"^layer0\.1\.", "backbone.stem.2.1."),
    *((rf"^layer{i + 1}\.", f"backbone.stages.{i}.") for i in range(4)),
    # DFNets: the same flat order in the stem, and stages of the names that they have here.
    (r"^backbone\.stage1\.([01])\.", r"backbone.stem.0.\1."),
    (r"^backbone\.stage1\.3\.", "backbone.stem.1.0."),
    (r"^backbone\.stage1\.4\.", "backbone.stem.1.1."),
    (r"^backbone\.stage(\d(?:_\d)?)\.", r"backbone.stages.\1."),
    # Blocks of both.
    (r"\.conv(\d)\.weight$", r".conv\1.0.weight"),
    (r"\.bn(\d)\.", r".conv\1.1."),
    (r"\.downsample\.", ".shortcut."),
    # Pyramid pooling: each branch a pooling, a convolution and a norm.
    (r"^head\.ppm\.stages\.(\d)\.1\.", r"context.0.branches.\1.0."),
    (r"^head\.ppm\.stages\.(\d)\.2\.", r"context.0.branches.\1.1."),
    (r"^head\.ppm\.bottleneck\.", "context.0.bottleneck."),
)
"""From the authors' keys of backbone and `context`, as in `models.Release`."""
DROPPED = (CLASSIFIER, r"head\.dsn\.")
"""Their classifier of the pre-training and their auxiliary heads."""

_MAKE: dict[str, Callable[[bool], Backbone]] = {
    "r18": lambda fine: _resnet(18),
    "r50": lambda fine: _resnet(50),
    "r101": lambda fine: _resnet(101),
    "stdc1": lambda fine: stdc(1),
    "stdc2": lambda fine: stdc(2),
    "dfnet1": lambda fine: dfnet(1, fine=fine),
    "dfnet2": lambda fine: dfnet(2, fine=fine),
}


def released_backbone(name: str, *, fine: bool = True) -> Backbone:
    """A backbone by its short name; `fine` as for `dfnet.dfnet`, the others ignore it.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in _MAKE:
        raise ConfigError(f"unknown backbone {name!r}: choose one of {', '.join(_MAKE)}")
    return _MAKE[name](fine)


def _resnet(depth: int) -> ResNet:
    """With the deep stem, and with a longer reach: not in the papers, but in the release.

    The second convolution of each block is dilated by 2 in the third stage and by 4 in the last,
    while the strides stay as they are.
    """
    network = resnet(depth, stem_channels=DEEP_STEM)
    for stage, dilation in zip(list(network.stages)[2:], (2, 4), strict=True):
        for name, conv in stage.named_modules():
            if name.endswith("conv2.0") and isinstance(conv, nn.Conv2d):
                conv.dilation = conv.padding = (dilation, dilation)
    return network


def released_context(in_channels: int, width: int) -> nn.Sequential:
    """Pyramid pooling as the release has it: (N, in_channels, h, w) to (N, width, h, w).

    Its branches are as wide as its output and linear, and stand before the input.
    """
    pooling = PyramidPooling(
        in_channels, width, branch_channels=width, branch_relu=False, input_first=False
    )
    return nn.Sequential(pooling, nn.Dropout2d(0.1))
