"""DDRNet: a fine branch at stride 8 and a coarse one down to 64 that exchange what they find.

Hong et al., "Deep Dual-resolution Networks for Real-time and Accurate Semantic Segmentation of
Road Scenes", 2021 (arXiv:2101.06085; IEEE T-ITS 2023), section III. DDRNet-39 exchanges twice in
the third stage, the others once. The classifiers of the pre-training on ImageNet are left out.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from rtseg.models import Release, Reported, Variant
from rtseg.models.backbones.dual_resolution import (
    RELEASE_RULES,
    DeepAggregation,
    dual_stem,
    linear_bottleneck,
    residual_stage,
)
from rtseg.models.layers import ConvBNReLU, Network, preactivated_head
from rtseg.models.resampling import resize_like

PAPER = (
    "Deep Dual-resolution Networks for Real-time and Accurate Semantic Segmentation of Road Scenes"
)
YEAR = 2021


def _reported(val: float, test: float, fps: float) -> tuple[Reported, Reported]:
    return (
        Reported(val),
        Reported(test, split="test", fps=fps, size=(1024, 2048), device="RTX 2080 Ti"),
    )


_SLIM_CAMVID = Reported(0.747, "camvid", "test", 230, (720, 960), "RTX 2080 Ti")
VARIANTS = {
    "ddrnet-23-slim": Variant({}, (*_reported(0.778, 0.774, 101.6), _SLIM_CAMVID)),
    "ddrnet-23": Variant({"width": 64, "head_width": 128}, _reported(0.795, 0.794, 37.1)),
    "ddrnet-39": Variant(
        {"width": 64, "depths": (3, 4, 6, 3), "exchanges": 2, "head_width": 256},
        (Reported(0.804, split="test"),),
    ),
}

RELEASES = (
    Release(
        rules=(
            *RELEASE_RULES,
            (r"^layer5_\.0\.", "fine5."),
            (r"^layer5\.0\.", "coarse5."),
            (r"^layer([34](?:_\d)?)_\.", r"exchanges.\1.fine."),
            (r"^layer([34](?:_\d)?)\.", r"exchanges.\1.coarse."),
            (r"^compression([34](?:_\d)?)\.", r"exchanges.\1.up."),
            (r"^down([34](?:_\d)?)\.", r"exchanges.\1.down."),
        ),
        dropped=(r"seghead_extra\.",),
        classifier="head.classifier.weight",
        source="the authors' release",
    ),
)


class Exchange(nn.Module):
    """A stage of both branches, then a bilateral fusion: each branch is added to the other.

    Section III, "bilateral fusion". All maps are taken and given before their ReLU.

    Args:
        coarse_in, fine_in, coarse_out, fine_out: channels.
        depth: blocks of either branch.
        stride: of the coarse branch.
        down: strided convolutions from the fine map to the coarse one.

    Forward: (N, coarse_in, h, w) and (N, fine_in, H, W) to (N, coarse_out, h / stride, ...) and
    (N, fine_out, H, W).
    """

    def __init__(
        self,
        coarse_in: int,
        fine_in: int,
        coarse_out: int,
        fine_out: int,
        depth: int,
        *,
        stride: int = 2,
        down: int = 1,
    ) -> None:
        super().__init__()
        self.coarse = residual_stage(coarse_in, coarse_out, depth, stride)
        self.fine = residual_stage(fine_in, fine_out, depth)
        self.up = ConvBNReLU(coarse_out, fine_out, 1, relu=False)
        middle = fine_out if down == 1 else coarse_out // 2
        self.down = nn.Sequential(
            *(ConvBNReLU(fine_out, middle, stride=2) if down == 2 else ()),
            *ConvBNReLU(middle, coarse_out, stride=2, relu=False),
        )

    def forward(self, coarse: Tensor, fine: Tensor) -> tuple[Tensor, Tensor]:
        coarse = self.coarse(F.relu(coarse))
        fine = self.fine(F.relu(fine))
        up = resize_like(self.up(F.relu(coarse)), fine)
        return coarse + self.down(F.relu(fine)), fine + up


class DDRNet(Network):
    """Shared stages to stride 8, two branches with bilateral fusions, pyramid pooling, head.

    Args:
        num_classes: C.
        width: w, channels of the first stage.
        depths: blocks of the four residual stages of the coarse branch.
        exchanges: bilateral fusions in the third stage, whose blocks are shared out among them.
        context_width: channels of each level of the pyramid pooling.
        head_width: channels in front of the classifier.

    Forward: (N, 3, H, W) to logits (N, C, H / 8, W / 8); in training mode a list with the auxiliary
    logits of the fine branch after its third stage, of the same size, as well.
    """

    output_stride = 8

    def __init__(
        self,
        num_classes: int,
        width: int,
        depths: tuple[int, int, int, int],
        exchanges: int,
        context_width: int,
        head_width: int,
    ) -> None:
        super().__init__()
        w, fine = width, 2 * width
        self.stem = dual_stem(w)
        self.layer1 = residual_stage(w, w, depths[0])
        self.layer2 = residual_stage(w, 2 * w, depths[1], 2)
        depth = depths[2] // exchanges
        self.exchanges = nn.ModuleDict()
        for i in range(exchanges):
            coarse_in, stride = (2 * w, 2) if i == 0 else (4 * w, 1)
            name = "3" if exchanges == 1 else f"3_{i + 1}"
            self.exchanges[name] = Exchange(coarse_in, fine, 4 * w, fine, depth, stride=stride)
        self.exchanges["4"] = Exchange(4 * w, fine, 8 * w, fine, depths[3], down=2)
        self.fine5 = linear_bottleneck(fine, fine)
        self.coarse5 = linear_bottleneck(8 * w, 8 * w, stride=2)
        self.context = DeepAggregation(16 * w, context_width, 4 * w)
        self.head = preactivated_head(4 * w, head_width, num_classes)
        self.auxiliary = preactivated_head(fine, head_width, num_classes)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        x = self.layer1(self.stem(images))  # (N, w, H / 4, W / 4)
        coarse = fine = self.layer2(F.relu(x))  # (N, 2w, H / 8, W / 8)
        *third, fourth = self.exchanges.values()
        for exchange in third:
            coarse, fine = exchange(coarse, fine)  # (N, 4w, H / 16, W / 16), (N, 2w, H / 8, W / 8)
        middle = fine
        coarse, fine = fourth(coarse, fine)  # (N, 8w, H / 32, W / 32), (N, 2w, H / 8, W / 8)
        fine = self.fine5(F.relu(fine))  # (N, 4w, H / 8, W / 8)
        coarse = self.context(self.coarse5(F.relu(coarse)))  # (N, 4w, H / 64, W / 64)
        logits: Tensor = self.head(fine + resize_like(coarse, fine))
        return [logits, self.auxiliary(middle)] if self.training else logits


def build(
    num_classes: int,
    *,
    width: int = 32,
    depths: tuple[int, int, int, int] = (2, 2, 2, 2),
    exchanges: int = 1,
    context_width: int = 128,
    head_width: int = 64,
) -> DDRNet:
    """A DDRNet, DDRNet-23-slim by default; see the class."""
    return DDRNet(num_classes, width, depths, exchanges, context_width, head_width)
