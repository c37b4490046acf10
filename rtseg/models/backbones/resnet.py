"""ResNet with basic or bottleneck blocks, at any width and depth, with three kinds of stem.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 (blocks, figure 5; depths and
the plain stem, table 1); the stems of 3x3 convolutions follow He et al., "Bag of Tricks", CVPR
2019 (ResNet-C), the stride in the bottleneck's 3x3 convolution too (ResNet-B); dilation in place
of stride follows Chen et al., "DeepLab", TPAMI 2018.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from rtseg.models.layers import ConvBNReLU

DEPTHS: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
}
PLAIN_STEM = (64,)
DEEP_STEM = (64, 64, 128)
TORCHVISION_KEYS: tuple[tuple[str, str], ...] = (
    (r"^(?:backbone\.)?conv1\.", "backbone.stem.0.0."),
    (r"^(?:backbone\.)?bn1\.", "backbone.stem.0.1."),
    (r"^(?:backbone\.)?layer", "backbone.stages.#"),
    (r"^(backbone\.stages.*)\.conv(\d)\.", r"\1.conv\2.0."),
    (r"^(backbone\.stages.*)\.bn(\d)\.", r"\1.conv\2.1."),
    (r"^(backbone\.stages.*)\.downsample\.", r"\1.shortcut."),
    *((f"#{n}", str(n - 1)) for n in range(1, 5)),
)
"""`Release` rules of a ResNet named as torchvision names it, plain stem; `#n` counts from one."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N, in, H, W) to (N, out, H / stride, W / stride).

    `relu=False` leaves out the last ReLU, after the sum.
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        dilation: int = 1,
        *,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.conv1 = ConvBNReLU(in_channels, out_channels, stride=stride, dilation=dilation)
        self.conv2 = ConvBNReLU(out_channels, out_channels, relu=False, dilation=dilation)
        self.shortcut = _shortcut(in_channels, out_channels, stride)
        self.relu = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.conv2(self.conv1(x)) + self.shortcut(x))
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut: (N, in, H, W) to (N, out, H / stride, W / stride).

    The 3x3 convolution has a quarter of the output's channels, or those over `reduction`.
    `relu=False` leaves out the last ReLU, after the sum.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        dilation: int = 1,
        *,
        relu: bool = True,
        reduction: int = expansion,
    ) -> None:
        super().__init__()
        width = out_channels // reduction
        self.conv1 = ConvBNReLU(in_channels, width, 1)
        self.conv2 = ConvBNReLU(width, width, 3, stride, dilation=dilation)
        self.conv3 = ConvBNReLU(width, out_channels, 1, relu=False)
        self.shortcut = _shortcut(in_channels, out_channels, stride)
        self.relu = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.conv3(self.conv2(self.conv1(x))) + self.shortcut(x))
        return out


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return ConvBNReLU(in_channels, out_channels, 1, stride, relu=False)


class ResNet(nn.Module):
    """Four stages at strides 4, 8, 16 and 32.

    Args:
        stem_channels: one number for the plain stem, a stride-2 7x7 convolution and a stride-2
            3x3 max-pool; two for two stride-2 3x3 convolutions; three for a stride-2 and two more
            3x3 convolutions and the max-pool.
        channels: of the four stages' outputs.
        blocks: how many blocks each stage has.
        block: "basic" or "bottleneck".
        output_stride: 32; or 16 or 8: the last stage, or the last two, keep the stride of the one
            before and widen their convolutions' reach by dilation instead.
        dilate_entry: whether the first block of such a stage is dilated as its other blocks are,
            as in the networks trained with Caffe, or as the stage before, as in torchvision.

    Forward: (N, 3, H, W) to four maps (N, channels[i], ceil(H / 2**(i + 2)), ...), the strides
    bounded by `output_stride`.
    """

    def __init__(
        self,
        stem_channels: tuple[int, ...] = (32, 64),
        channels: tuple[int, int, int, int] = (64, 128, 256, 512),
        blocks: tuple[int, int, int, int] = (2, 2, 2, 2),
        *,
        block: Literal["basic", "bottleneck"] = "basic",
        output_stride: Literal[8, 16, 32] = 32,
        dilate_entry: bool = False,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.stem = _stem(stem_channels)
        make = BasicBlock if block == "basic" else Bottleneck
        previous, stride, dilation = stem_channels[-1], 4, 1
        stages = []
        for i, (width, depth) in enumerate(zip(channels, blocks, strict=True)):
            step, entry_dilation = (1 if i == 0 else 2), dilation
            if stride * step > output_stride:
                step, dilation = 1, dilation * 2
            stride *= step
            entry = make(previous, width, step, dilation if dilate_entry else entry_dilation)
            rest = (make(width, width, 1, dilation) for _ in range(depth - 1))
            stages.append(nn.Sequential(entry, *rest))
            previous = width
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def _stem(channels: tuple[int, ...]) -> nn.Sequential:
    first, last = channels[0], channels[-1]
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    if len(channels) == 1:
        return nn.Sequential(ConvBNReLU(3, first, kernel_size=7, stride=2), pool)
    if len(channels) == 2:
        return nn.Sequential(ConvBNReLU(3, first, stride=2), ConvBNReLU(first, last, stride=2))
    return nn.Sequential(
        ConvBNReLU(3, first, stride=2),
        ConvBNReLU(first, channels[1]),
        ConvBNReLU(channels[1], last),
        pool,
    )


def resnet(
    depth: int,
    *,
    stem_channels: tuple[int, ...] = PLAIN_STEM,
    output_stride: Literal[8, 16, 32] = 32,
    dilate_entry: bool = False,
) -> ResNet:
    """ResNet-18, 34, 50 or 101 as published: a key of `DEPTHS`."""
    wide = depth >= 50
    channels = (256, 512, 1024, 2048) if wide else (64, 128, 256, 512)
    return ResNet(
        stem_channels,
        channels,
        DEPTHS[depth],
        block="bottleneck" if wide else "basic",
        output_stride=output_stride,
        dilate_entry=dilate_entry,
    )
