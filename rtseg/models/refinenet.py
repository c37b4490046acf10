"""RefineNet and light-weight RefineNet: from deep to fine, each level is refined by the one below.

Lin et al., "RefineNet: Multi-Path Refinement Networks for High-Resolution Semantic Segmentation",
CVPR 2017: residual convolution units, multi-resolution fusion, chained residual pooling (section
3.2 and figure 3), four blocks in cascade (figure 2c). Nekrasov et al., "Light-Weight RefineNet for
Real-Time Semantic Segmentation", BMVC 2018: 1x1 in place of 3x3 convolutions (section 3.2) and no
residual units (section 3.3). Four poolings per chain, as in both releases; no norms outside the
backbone. Left out: the paper's variants with fewer blocks, or with two scales of the input.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from rtseg.models import Release, Reported, Variant
from rtseg.models.backbones.resnet import TORCHVISION_KEYS, ResNet, resnet
from rtseg.models.layers import Network
from rtseg.models.resampling import upsample_like

PAPER = "RefineNet: Multi-Path Refinement Networks for High-Resolution Semantic Segmentation"
YEAR = 2017


def _light(depth: int, *reported: Reported) -> Variant:
    return Variant(
        {"depth": depth, "light": True},
        reported,
        "Light-Weight RefineNet for Real-Time Semantic Segmentation",
        2018,
    )


VARIANTS = {
    "refinenet-lw-r18": _light(18),
    "refinenet-lw-r50": _light(
        50,
        Reported(0.785, "pascal-voc", fps=51.1, size=(468, 625), device="GTX 1080 Ti"),
        Reported(0.417, "nyu-v2"),
    ),
    "refinenet-lw-r101": _light(
        101,
        Reported(0.803, "pascal-voc", fps=36.8, size=(468, 625), device="GTX 1080 Ti"),
        Reported(0.436, "nyu-v2"),
    ),
    "refinenet-r101": Variant(
        {"depth": 101}, (Reported(0.736, split="test"), Reported(0.805, "pascal-voc"))
    ),
}
RELEASES = (
    Release(
        (
            (r"^p_ims1d2_outl", "levels.#"),
            (r"^adapt_stage(\d)_b\.0\.", r"levels.#\1.enter."),
            (r"^adapt_stage(\d)_b2_joint_varout", r"levels.#\1.adapt"),
            (r"^mflow_conv_g(\d)_pool\.0\.", r"levels.#\1.chain."),
            (r"^mflow_conv_g(\d)_b\.0\.", r"levels.#\1.leave."),
            (r"^mflow_conv_g(\d)_b3_joint_varout", r"levels.#\1.hand_on"),
            (r"(\d)_outvar_dimred\.", r"convs.#\1."),
            (r"(\d)_conv\.", r"first.#\1."),
            (r"(\d)_conv_relu_varout_dimred\.", r"second.#\1."),
            (r"^(levels\.#\d)_dimred", r"\1.reduce"),
            (r"_dimred\.", "."),
            (r"^clf_conv\.", "classifier."),
            *TORCHVISION_KEYS,
        ),
        classifier="classifier.weight",
        source="the authors' release (light-weight-refinenet, refinenet-pytorch)",
    ),
)


class ResidualUnits(nn.Module):
    """Residual convolution units one after another, ReLU before each convolution.

    (N, C, h, w) to the same.
    """

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.first = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in range(count)
        )
        self.second = nn.ModuleList(_conv(channels, channels, 3) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.first, self.second, strict=True):
            x = x + second(F.relu(first(F.relu(x))))
        return x


class ChainedPooling(nn.Module):
    """Chained residual pooling: 5x5 maxima of maxima, each weighted and added.

    (N, C, h, w) to the same.
    """

    def __init__(self, channels: int, kernel_size: int, count: int = 4) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_conv(channels, channels, kernel_size) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        step = x
        for conv in self.convs:
            step = conv(F.max_pool2d(step, 5, stride=1, padding=2))
            x = x + step
        return x


class Refine(nn.Module):
    """One block: a level of the backbone, fused with what the deeper block hands on.

    Args:
        in_channels: of the backbone's level.
        channels: inside the block.
        out_channels: handed on; None for the last block, which hands on what it has.
        deepest: whether there is no block before.
        light: 1x1 convolutions, no residual units.

    Forward: (N, in_channels, h, w), and of the deeper block (N, channels, ceil(h / 2), ...), to
    (N, out_channels, h, w).
    """

    def __init__(
        self, in_channels: int, channels: int, out_channels: int | None, deepest: bool, light: bool
    ) -> None:
        super().__init__()
        kernel = 1 if light else 3
        self.reduce = _conv(in_channels, channels, kernel)
        self.enter = nn.Identity() if light else ResidualUnits(channels, 2)
        self.adapt = nn.Identity() if deepest else _conv(channels, channels, kernel)
        self.chain = ChainedPooling(channels, kernel)
        self.leave = nn.Identity() if light else ResidualUnits(channels, 3)
        self.hand_on = _conv(channels, out_channels, kernel) if out_channels else nn.Identity()

    def forward(self, level: Tensor, deeper: Tensor | None = None) -> Tensor:
        x = self.adapt(self.enter(self.reduce(level)))
        if deeper is not None:
            x = x + upsample_like(deeper, x)
        out: Tensor = self.hand_on(self.leave(self.chain(F.relu(x))))
        return out


def _conv(in_channels: int, out_channels: int, kernel_size: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)


class RefineNet(Network):
    """Backbone, four blocks of refinement from the deepest level on, classifier.

    Args:
        num_classes: C.
        backbone: gives four feature maps at strides 4, 8, 16 and 32.
        light: the light-weight blocks.
        width: channels of the blocks; the deepest has twice as many.

    Forward: (N, 3, H, W) to logits (N, C, H / 4, W / 4); in training mode a list of them alone.
    """

    def __init__(
        self, num_classes: int, backbone: ResNet, *, light: bool = False, width: int = 256
    ) -> None:
        super().__init__()
        self.backbone = backbone
        fine, middle, coarse, deepest = backbone.channels
        self.levels = nn.ModuleList(
            (
                Refine(deepest, 2 * width, width, True, light),
                Refine(coarse, width, width, False, light),
                Refine(middle, width, width, False, light),
                Refine(fine, width, None, False, light),
            )
        )
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Conv2d(width, num_classes, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        fine, middle, coarse, deepest = self.backbone(images)
        x: Tensor | None = None
        maps = (self.dropout(deepest), self.dropout(coarse), middle, fine)
        for refine, level in zip(self.levels, maps, strict=True):
            x = refine(level, x)
        logits: Tensor = self.classifier(x)
        return [logits] if self.training else logits


def build(
    num_classes: int, *, depth: int = 101, light: bool = False, width: int = 256
) -> RefineNet:
    """A RefineNet over the ResNet of this depth."""
    return RefineNet(num_classes, resnet(depth), light=light, width=width)
