"""AlexNet without its classifier, in the single-column form that FCN starts from (CaffeNet).

Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012,
section 3 and figure 2: two groups of channels in the second, fourth and fifth convolution; as in
Caffe's reference model, pooling comes before the normalisation of the responses, not after.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from rtseg.models.backbones.vgg import initialise


class ResponseNorm(nn.Module):
    """Divides each value by a power of the squares of five neighbouring channels' values.

    Krizhevsky et al., section 3.3, with Caffe's constants: x / (1 + 1e-4 / 5 sum x^2)^0.75.
    Made of slices, and scaled before the square, so that it runs in float16 everywhere.
    """

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        squares = (x * (1e-4 / 5) ** 0.5).square()
        padded = F.pad(squares, (0, 0, 0, 0, 2, 2))
        total = padded[:, :channels]
        for i in range(1, 5):
            total = total + padded[:, i : i + channels]
        return x * (1.0 + total).pow(-0.75)


class AlexNet(nn.Module):
    """Five convolutions, the first of stride 4, and three overlapping max-poolings.

    The paper's first convolution and poolings have no padding; here they have half their kernel,
    so that any size works and nothing is cut off.

    Forward: (N, 3, H, W) to three maps at strides 8, 16 and 32, behind the poolings, with
    `channels`. Cell i of a map of stride s is centred on pixel i s.
    """

    channels = (96, 256, 256)

    def __init__(self) -> None:
        super().__init__()
        first, second, last = self.channels
        self.stages = nn.ModuleList(
            (
                nn.Sequential(_convolution(3, first, 11, stride=4), _pool(), ResponseNorm()),
                nn.Sequential(_convolution(first, second, 5, groups=2), _pool(), ResponseNorm()),
                nn.Sequential(
                    _convolution(second, 384, 3),
                    _convolution(384, 384, 3, groups=2),
                    _convolution(384, last, 3, groups=2),
                    _pool(),
                ),
            )
        )
        initialise(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def _convolution(
    in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    padding = kernel_size // 2
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups)
    return nn.Sequential(conv, nn.ReLU(inplace=True))


def _pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, stride=2, padding=1)
