"""DF1 and DF2: chains of basic blocks, their widths and depths found by search.

Li et al., "Partial Order Pruning: for Best Speed/Accuracy Trade-off in Neural Architecture
Search", CVPR 2019 (section 4.3 and figure 6). The classifier of the pre-training is left out.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from rtseg.models.backbones.resnet import BasicBlock
from rtseg.models.layers import ConvBNReLU

STAGES: dict[int, dict[str, tuple[int, int, int]]] = {
    1: {"2": (64, 3, 2), "3": (128, 3, 2), "4": (256, 3, 2), "5": (512, 1, 1)},
    2: {
        "2_1": (64, 2, 2), "2_2": (128, 1, 1),
        "3_1": (128, 10, 2), "3_2": (256, 1, 1),
        "4_1": (256, 4, 2), "4_2": (512, 2, 1),
    },
}  # fmt: skip
"""Channels, blocks and stride of the stages after the stem, which has stride 4 and 64 channels."""

FINE = {1: ("2", "3", "5"), 2: ("2_2", "3_2", "4_2")}
"""The last stage of each stride: 8, 16 and 32."""
COARSE = {1: ("3", "4", "5"), 2: ("2_2", "3_2", "4_2")}
"""What SFNet reads of them: of DF1 maps at strides 16, 32 and 32, of DF2 at 8, 16 and 32."""


class DFNet(nn.Module):
    """Two stride-2 convolutions, then stages of basic blocks.

    Args:
        stages: by name, (channels, blocks, stride).
        outputs: the names of the stages whose maps are given.
        stem: whether the stem's map, at stride 4, is given before these.

    Forward: (N, 3, H, W) to maps (N, channels[i], ...), finest first.
    """

    def __init__(
        self, stages: dict[str, tuple[int, int, int]], outputs: tuple[str, ...], stem: bool
    ) -> None:
        super().__init__()
        self.outputs, self.gives_stem = outputs, stem
        self.stem = nn.Sequential(ConvBNReLU(3, 32, stride=2), ConvBNReLU(32, 64, stride=2))
        self.stages = nn.ModuleDict()
        previous = 64
        for name, (width, depth, stride) in stages.items():
            rest = (BasicBlock(width, width) for _ in range(depth - 1))
            self.stages[name] = nn.Sequential(BasicBlock(previous, width, stride), *rest)
            previous = width
        self.channels = (64,) * stem + tuple(stages[name][0] for name in outputs)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        features = [x] if self.gives_stem else []
        for name, stage in self.stages.items():
            x = stage(x)
            if name in self.outputs:
                features.append(x)
        return features


def dfnet(number: Literal[1, 2], *, fine: bool = True) -> DFNet:
    """DF1 or DF2.

    Args:
        fine: four maps, at strides 4, 8, 16 and 32; or three, of which `COARSE` tells.
    """
    return DFNet(STAGES[number], (FINE if fine else COARSE)[number], stem=fine)
