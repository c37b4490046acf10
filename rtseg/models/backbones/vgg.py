"""VGG-16 without its classifier, and the classifier's first layers as convolutions.

Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR
2015, table 1, configuration D; with batch normalisation where asked for. fc6 and fc7 as
convolutions follow Long et al., "Fully Convolutional Networks", CVPR 2015, section 3.1; dilation
in place of the last two strides follows Chen et al., "DeepLab", ICLR 2015, section 3.1.

Maps of odd sizes are pooled to the half rounded up, so that cell i of stride s stands for the
pixels i s to (i + 1) s - 1 at every size, and what is up-sampled covers what it is added to.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from rtseg.models.layers import ConvBNReLU

DEPTHS = (2, 2, 3, 3, 3)


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions in five stages, each with a max-pooling behind it.

    Args:
        batch_norm: behind every convolution, which has no bias then.
        output_stride: 32; or 8: the last two poolings, 3x3 then, keep the size, and the last
            stage's convolutions are dilated by 2.

    Forward: (N, 3, H, W) to the five pooled maps (N, channels[i], ceil(H / 2**(i + 1)), ...), the
    strides bounded by `output_stride`.
    """

    channels = (64, 128, 256, 512, 512)

    def __init__(self, *, batch_norm: bool = False, output_stride: Literal[8, 32] = 32) -> None:
        super().__init__()
        previous = 3
        stages: list[nn.Module] = []
        pools: list[nn.Module] = []
        for i, (width, depth) in enumerate(zip(self.channels, DEPTHS, strict=True)):
            dilation = 2 if output_stride == 8 and i == 4 else 1
            widths = (previous, *[width] * (depth - 1))
            blocks = [_convolution(w, width, dilation, batch_norm) for w in widths]
            stages.append(nn.Sequential(*blocks))
            halved = 2 ** (i + 1) <= output_stride
            pools.append(nn.MaxPool2d(2, 2, ceil_mode=True) if halved else nn.MaxPool2d(3, 1, 1))
            previous = width
        self.stages = nn.ModuleList(stages)
        self.pools = nn.ModuleList(pools)
        initialise(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for stage, pool in zip(self.stages, self.pools, strict=True):
            x = pool(stage(x))
            features.append(x)
        return features


def _convolution(
    in_channels: int, out_channels: int, dilation: int, batch_norm: bool
) -> nn.Sequential:
    if batch_norm:
        return ConvBNReLU(in_channels, out_channels, dilation=dilation)
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation)
    return nn.Sequential(conv, nn.ReLU(inplace=True))


def fully_convolutional(
    in_channels: int, width: int, kernel_size: int, dilation: int = 1
) -> nn.Sequential:
    """fc6 and fc7 as convolutions, with ReLU and dropout: (N, in, h, w) to (N, width, h, w).

    Of an even kernel's centre the cell before it is taken: it reaches further to the bottom right.
    """
    reach = dilation * (kernel_size - 1)
    before, after = reach // 2, reach - reach // 2
    layers = nn.Sequential(
        nn.ZeroPad2d((before, after, before, after)),
        nn.Conv2d(in_channels, width, kernel_size, dilation=dilation),
        nn.ReLU(inplace=True),
        nn.Dropout2d(0.5),
        nn.Conv2d(width, width, 1),
        nn.ReLU(inplace=True),
        nn.Dropout2d(0.5),
    )
    initialise(layers)
    return layers


def initialise(module: nn.Module) -> None:
    """He's initialisation of every convolution's weights: without norms, others fade on the way.

    He et al., "Delving Deep into Rectifiers", ICCV 2015, section 2.2.
    """
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, nonlinearity="relu")
