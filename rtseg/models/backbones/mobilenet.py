"""MobileNetV2 and MobileNetV3-large, with dilation in place of the last strides where asked for.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018 (table 2);
Howard et al., "Searching for MobileNetV3", ICCV 2019 (table 1; squeeze-and-excitation, section
5.3; hard-swish, section 5.2). The 1x1 convolution to 1280 channels in front of the classifier of
ImageNet is left out, as the segmentation experiments of both papers do; V3's to 960 stays.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from rtseg.models.layers import ConvBNReLU, InvertedResidual

Row = tuple[int, int, int, int, int]
"""Blocks of one width: (expansion, channels, how many, stride of the first, kernel size)."""


class InvertedResiduals(nn.Module):
    """A stem of stride 2 and four stages of inverted residuals with ReLU6.

    Args:
        stages: the rows of each stage; each stage halves the map.
        stem: channels of the first convolution.
        output_stride: 32; or 16 or 8: the last stage, or the last two, keep the stride of the one
            before and widen their depthwise convolutions' reach by dilation instead.

    Forward: (N, 3, H, W) to four maps (N, channels[i], ceil(H / 2**(i + 2)), ...), the strides
    bounded by `output_stride`.
    """

    def __init__(
        self,
        stages: tuple[tuple[Row, ...], ...],
        *,
        stem: int = 32,
        output_stride: Literal[8, 16, 32] = 32,
    ) -> None:
        super().__init__()
        self.channels = tuple(rows[-1][1] for rows in stages)
        self.stem = ConvBNReLU(3, stem, stride=2, activation=nn.ReLU6)
        previous, reached, dilation = stem, 2, 1
        made = []
        for rows in stages:
            blocks = []
            for expansion, channels, repeats, first_stride, kernel in rows:
                for i in range(repeats):
                    step, reach = (first_stride if i == 0 else 1), dilation
                    if reached * step > output_stride:
                        step, dilation = 1, dilation * step
                    reached *= step
                    blocks.append(
                        InvertedResidual(
                            previous, channels, step, expansion, kernel,
                            dilation=reach, activation=nn.ReLU6,
                        )
                    )  # fmt: skip
                    previous = channels
            made.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(made)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def mobilenet_v2(*, output_stride: Literal[8, 16, 32] = 32) -> InvertedResiduals:
    """MobileNetV2 at width 1: maps of 24, 32, 96 and 320 channels at strides 4, 8, 16 and 32."""
    stages: tuple[tuple[Row, ...], ...] = (
        ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3)),
        ((6, 32, 3, 2, 3),),
        ((6, 64, 4, 2, 3), (6, 96, 3, 1, 3)),
        ((6, 160, 3, 2, 3), (6, 320, 1, 1, 3)),
    )
    return InvertedResiduals(stages, output_stride=output_stride)


class SqueezeExcite(nn.Module):
    """Weighs channels by their own global average: ReLU inside, a hard sigmoid as the gate.

    Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018; a quarter of the channels inside,
    rounded to a multiple of 8 (Howard et al. 2019, section 5.3). (N, C, h, w) to the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inside = _multiple_of_8(channels // 4)
        self.fc1 = nn.Conv2d(channels, inside, 1)
        self.fc2 = nn.Conv2d(inside, channels, 1)
        self.relu = nn.ReLU(inplace=True)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        inside = self.relu(self.fc1(x.mean(dim=(2, 3), keepdim=True)))
        gate: Tensor = self.gate(self.fc2(inside))
        return x * gate


def _multiple_of_8(value: int) -> int:
    """The nearest one, but none that is more than a tenth below."""
    rounded = max(8, (value + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * value else rounded


class BottleneckV3(nn.Module):
    """Inverted residual with squeeze-and-excitation; `hidden` channels inside.

    Howard et al. 2019, figure 4. (N, in, H, W) to (N, out, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        *,
        squeeze: bool,
        hard_swish: bool,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        activation = nn.Hardswish if hard_swish else nn.ReLU
        self.shortcut = stride == 1 and in_channels == out_channels
        layers: list[nn.Module] = []
        if hidden != in_channels:
            layers.append(ConvBNReLU(in_channels, hidden, 1, activation=activation))
        layers.append(
            ConvBNReLU(
                hidden, hidden, kernel_size, stride,
                dilation=dilation, groups=hidden, activation=activation,
            )
        )  # fmt: skip
        if squeeze:
            layers.append(SqueezeExcite(hidden))
        layers.append(ConvBNReLU(hidden, out_channels, 1, relu=False))
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return x + out if self.shortcut else out


_V3_LARGE: tuple[tuple[int, int, int, bool, bool, int], ...] = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2), (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2), (5, 120, 40, True, False, 1), (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2), (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1), (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1), (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2), (5, 960, 160, True, True, 1), (5, 960, 160, True, True, 1),
)  # fmt: skip
"""Table 1: (kernel size, channels inside, channels, squeeze, hard-swish, stride)."""


class MobileNetV3Large(nn.Module):
    """MobileNetV3-large up to its last 1x1 convolution.

    Args:
        output_stride: 32, or 16: the last three blocks are dilated by 2, as the paper does for
            segmentation (section 6.4).

    Forward: (N, 3, H, W) to four maps (N, channels[i], ...) at strides 4, 8, 16 and
    `output_stride`: what the first block of each of these strides gives, as in torchvision's
    networks, and the last layer.
    """

    channels = (24, 40, 80, 960)
    _ends = (2, 4, 7, 16)  # layers whose output is a map

    def __init__(self, *, output_stride: Literal[16, 32] = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvBNReLU(3, 16, stride=2, activation=nn.Hardswish)]
        previous, reached, dilation = 16, 2, 1
        for kernel, hidden, out, squeeze, hard_swish, stride in _V3_LARGE:
            step = stride
            if reached * stride > output_stride:
                step, dilation = 1, dilation * stride
            reached *= step
            layers.append(
                BottleneckV3(
                    previous, hidden, out, kernel, step,
                    squeeze=squeeze, hard_swish=hard_swish, dilation=dilation,
                )
            )  # fmt: skip
            previous = out
        layers.append(ConvBNReLU(previous, self.channels[-1], 1, activation=nn.Hardswish))
        self.layers = nn.ModuleList(layers)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-3  # the published networks'

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in self._ends:
                features.append(x)
        return features
