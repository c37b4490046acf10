"""ResNet with basic blocks, at any width and depth, with a plain stem or one of 3x3 convolutions.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 (basic block, figure 5; the
plain stem, table 1); the stem of 3x3 convolutions follows He et al., "Bag of Tricks", CVPR 2019
(ResNet-C).
"""

from __future__ import annotations

from torch import Tensor, nn

from rtseg.models.layers import ConvBNReLU


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N, in, H, W) to (N, out, H / stride, W / stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = ConvBNReLU(in_channels, out_channels, stride=stride)
        self.conv2 = ConvBNReLU(out_channels, out_channels, relu=False)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = ConvBNReLU(in_channels, out_channels, 1, stride, relu=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.conv2(self.conv1(x)) + self.shortcut(x))
        return out


class ResNet(nn.Module):
    """Four stages at strides 4, 8, 16 and 32.

    Args:
        stem_channels: of the two stride-2 3x3 convolutions of the stem; a single number gives the
            plain stem, a stride-2 7x7 convolution and a stride-2 3x3 max-pool.
        channels: of the four stages.
        blocks: how many basic blocks each stage has.

    Forward: (N, 3, H, W) to four maps (N, channels[i], ceil(H / 2**(i + 2)), ...).
    """

    def __init__(
        self,
        stem_channels: tuple[int, int] | tuple[int] = (32, 64),
        channels: tuple[int, int, int, int] = (64, 128, 256, 512),
        blocks: tuple[int, int, int, int] = (2, 2, 2, 2),
    ) -> None:
        super().__init__()
        self.channels = channels
        first, previous = stem_channels[0], stem_channels[-1]
        if len(stem_channels) == 1:
            self.stem = nn.Sequential(
                ConvBNReLU(3, first, kernel_size=7, stride=2),
                nn.MaxPool2d(3, stride=2, padding=1),
            )
        else:
            self.stem = nn.Sequential(
                ConvBNReLU(3, first, stride=2), ConvBNReLU(first, previous, stride=2)
            )
        stages = []
        for i, (width, depth) in enumerate(zip(channels, blocks, strict=True)):
            entry = BasicBlock(previous, width, stride=1 if i == 0 else 2)
            stages.append(
                nn.Sequential(entry, *(BasicBlock(width, width) for _ in range(depth - 1)))
            )
            previous = width
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features
