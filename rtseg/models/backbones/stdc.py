"""STDC1 and STDC2: blocks that concatenate ever narrower and ever further reaching convolutions.

Fan et al., "Rethinking BiSeNet For Real-time Semantic Segmentation", CVPR 2021: the short-term
dense concatenate module (section 3.1, figure 3), the two networks (table 2). The classifier of the
pre-training is left out.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from rtseg.models.layers import ConvBNReLU

DEPTHS: dict[int, tuple[int, int, int]] = {1: (2, 2, 2), 2: (4, 5, 3)}
"""Modules at strides 8, 16 and 32."""

RULES = (
    (r"backbone\.(?:features|x\d+\.0)\.(\d+)\.", r"backbone.layers.\1."),
    (r"(backbone\..*)\.conv\.weight$", r"\1.0.weight"),
    (r"(backbone\..*)\.bn\.", r"\1.1."),
)
"""From the authors' keys, after whatever stands in front of `backbone.`, as in `models.Release`.

They hold each layer twice, in one list (`features`) and again by stride (`x2` to `x32`), of which
the second counts, as it does when PyTorch loads them.
"""
CLASSIFIER = r".*backbone\.(conv_last|fc|bn|linear|dropout)\."
"""Their classifier of the pre-training, for `models.Release.dropped`."""


class ShortTermDenseConcatenate(nn.Module):
    """1x1 and three 3x3 convolutions in a row, their outputs concatenated.

    (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)): of these
    channels a half, a quarter and two eighths. With stride 2 a depthwise convolution stands before
    the first 3x3 one, and the 1x1 one's output is pooled (figure 3c).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        half, quarter, eighth = (out_channels // n for n in (2, 4, 8))
        self.conv_list = nn.ModuleList(
            [
                ConvBNReLU(in_channels, half, 1),
                ConvBNReLU(half, quarter),
                ConvBNReLU(quarter, eighth),
                ConvBNReLU(eighth, eighth),
            ]
        )
        self.avd_layer: nn.Module = nn.Identity()
        self.pool: nn.Module = nn.Identity()
        if stride == 2:
            self.avd_layer = ConvBNReLU(half, half, stride=2, relu=False, groups=half)
            self.pool = nn.AvgPool2d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.conv_list
        x = first(x)
        outputs = [self.pool(x)]
        x = self.avd_layer(x)
        for conv in others:
            x = conv(x)
            outputs.append(x)
        return torch.cat(outputs, dim=1)


class STDC(nn.Module):
    """Two stride-2 convolutions, then three stages of modules at strides 8, 16 and 32.

    Forward: (N, 3, H, W) to four maps (N, channels[i], ceil(H / 2**(i + 2)), ...).
    """

    channels = (64, 256, 512, 1024)

    def __init__(self, depths: tuple[int, int, int]) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvBNReLU(3, 32, stride=2), ConvBNReLU(32, 64, stride=2)]
        self.last = [len(layers)]  # one past the last layer of each stride from 4 on
        previous = self.channels[0]
        for width, depth in zip(self.channels[1:], depths, strict=True):
            layers.append(ShortTermDenseConcatenate(previous, width, 2))
            layers += [ShortTermDenseConcatenate(width, width) for _ in range(depth - 1)]
            self.last.append(len(layers))
            previous = width
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for i, layer in enumerate(self.layers, start=1):
            x = layer(x)
            if i in self.last:
                features.append(x)
        return features


def stdc(number: Literal[1, 2]) -> STDC:
    """STDC1 or STDC2."""
    return STDC(DEPTHS[number])
