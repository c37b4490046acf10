"""HRNetV2: the maps of all of HRNet's branches, joined at stride 4.

Wang et al., "Deep High-Resolution Representation Learning for Visual Recognition", TPAMI 2020:
section 3.4 and figure 4b. The small ones are of the authors' release. Maps and logits are resized
as for the paper's results; a later branch of the release does it with aligned corners.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rtseg.models import Release, Reported, Variant
from rtseg.models.backbones.hrnet import HRNet
from rtseg.models.layers import ConvBNReLU, Network
from rtseg.models.resampling import resize_like

PAPER = "Deep High-Resolution Representation Learning for Visual Recognition"
YEAR = 2020
VARIANTS = {
    "hrnetv2-w18-small": Variant(
        {"width": 16, "first": (32, 1), "modules": (1, 1, 1), "blocks": 2}, (Reported(0.703),)
    ),
    "hrnetv2-w18-small-v2": Variant(
        {"width": 18, "first": (64, 2), "modules": (1, 3, 2), "blocks": 2}, (Reported(0.762),)
    ),
    "hrnetv2-w18": Variant({"width": 18}),
    "hrnetv2-w48": Variant({"width": 48}, (Reported(0.811), Reported(0.816, split="test"))),
}
RELEASES = (
    Release(
        rules=(
            (r"^conv(\d)\.", r"backbone.stem\1.0."),
            (r"^bn(\d)\.", r"backbone.stem\1.1."),
            (r"^(layer1|transition\d|stage\d)\.", r"backbone.\1."),
            (r"\.downsample\.", ".shortcut."),
            (r"\.conv(\d)\.", r".conv\1.0."),
            (r"\.bn(\d)\.", r".conv\1.1."),
            (r"(\.transition\d\.\d)\.0\.(\d)\.", r"\1.\2."),
            (r"^last_layer\.([01])\.", r"head.0.\1."),
            (r"^last_layer\.3\.", "head.1."),
        ),
        classifier="head.1.weight",
        source="the authors' release",
    ),
)


class HRNetV2(Network):
    """HRNet, its four maps resized to the finest, two 1x1 convolutions.

    Args:
        num_classes: C.
        backbone: gives the maps at strides 4, 8, 16 and 32.

    Forward: (N, 3, H, W) to logits (N, C, H / 4, W / 4); in training mode a list of them alone.
    """

    def __init__(self, num_classes: int, backbone: HRNet) -> None:
        super().__init__()
        self.backbone = backbone
        joined = sum(backbone.channels)
        self.head = nn.Sequential(ConvBNReLU(joined, joined, 1), nn.Conv2d(joined, num_classes, 1))

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        fine, *coarser = self.backbone(images)
        maps = torch.cat([fine, *(resize_like(x, fine) for x in coarser)], dim=1)
        logits: Tensor = self.head(maps)
        return [logits] if self.training else logits


def build(
    num_classes: int,
    *,
    width: int = 18,
    first: tuple[int, int] = (64, 4),
    modules: tuple[int, int, int] = (1, 4, 3),
    blocks: int = 4,
) -> HRNetV2:
    """An HRNetV2 of the given widths and depths; see `backbones.hrnet.HRNet`."""
    return HRNetV2(num_classes, HRNet(width, first=first, modules=modules, blocks=blocks))
