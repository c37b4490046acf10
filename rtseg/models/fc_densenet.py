"""FC-DenseNet ("The One Hundred Layers Tiramisu"): dense blocks down and up, joined by skips.

Jégou et al., "The One Hundred Layers Tiramisu: Fully Convolutional DenseNets for Semantic
Segmentation", CVPR workshops 2017: section 3 and figure 1 (architecture), tables 1 (layers of a
block) and 2 (the 103 layers), section 4.1 (the smaller ones).

The paper's 3.5 and 9.4 million parameters count the norms' running statistics too, as Lasagne
does: ours are 3.50 and 9.43 so, with CamVid's 11 classes. Its 1.5 million for the smallest do not
follow from its description, which gives 1.40.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rtseg.models import Reported, Variant
from rtseg.models.layers import Network
from rtseg.models.resampling import crop_like

PAPER = "The One Hundred Layers Tiramisu: Fully Convolutional DenseNets"
YEAR = 2017


def _camvid(miou: float) -> tuple[Reported, ...]:
    """Of the paper's table 3."""
    return (Reported(miou, data="camvid", split="test"),)


VARIANTS = {
    "fc-densenet-56": Variant({"growth": 12}, _camvid(0.589)),
    "fc-densenet-67": Variant({"layers": (5, 5, 5, 5, 5, 5)}, _camvid(0.658)),
    "fc-densenet-103": Variant({"layers": (4, 5, 7, 10, 12, 15)}, _camvid(0.669)),
}


class DenseBlock(nn.Module):
    """Layers that each see what came in and what all layers before them made.

    (N, in_channels, H, W) to the layers' outputs alone, (N, layers * growth, H, W).
    """

    def __init__(self, in_channels: int, layers: int, growth: int, dropout: float) -> None:
        super().__init__()
        widths = (in_channels + i * growth for i in range(layers))
        self.layers = nn.ModuleList(_layer(c, growth, 3, dropout) for c in widths)

    def forward(self, x: Tensor) -> Tensor:
        made: list[Tensor] = []
        for layer in self.layers:
            made.append(layer(torch.cat((x, *made), dim=1)))
        return torch.cat(made, dim=1)


class FCDenseNet(Network):
    """Dense blocks with max-pooling between them, and as many on the way back up.

    On the way down a block's input is kept beside its output; on the way up it is not, so that
    the number of channels does not grow with the resolution (section 3.2).

    Args:
        num_classes: C.
        layers: of the blocks on the way down, and of the one at the bottom; the way up mirrors.
        growth: channels that each layer adds.
        stem: channels of the first convolution.
        dropout: after each convolution of the blocks.

    Forward: (N, 3, H, W) to logits (N, C, H, W); in training mode a list of them alone.
    """

    output_stride = 1

    def __init__(
        self,
        num_classes: int,
        layers: tuple[int, ...],
        growth: int,
        stem: int = 48,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        *down, bottom = layers
        self.input_multiple = 2 ** len(down)
        self.stem = nn.Conv2d(3, stem, 3, padding=1)
        self.down = nn.ModuleList()
        self.transitions_down = nn.ModuleList()
        self.transitions_up = nn.ModuleList()
        self.up = nn.ModuleList()
        channels, skips = stem, []
        for depth in down:
            self.down.append(DenseBlock(channels, depth, growth, dropout))
            channels += depth * growth
            skips.append(channels)
            pool = nn.MaxPool2d(2)
            self.transitions_down.append(
                nn.Sequential(_layer(channels, channels, 1, dropout), pool)
            )
        self.bottom = DenseBlock(channels, bottom, growth, dropout)
        made = bottom * growth
        for depth, skip in zip(down[::-1], skips[::-1], strict=True):
            self.transitions_up.append(nn.ConvTranspose2d(made, made, 3, stride=2))
            channels = made + skip
            self.up.append(DenseBlock(channels, depth, growth, dropout))
            made = depth * growth
        self.classifier = nn.Conv2d(channels + made, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        x = self.stem(images)
        skips: list[Tensor] = []
        for block, transition in zip(self.down, self.transitions_down, strict=True):
            skips.append(torch.cat((x, block(x)), dim=1))
            x = transition(skips[-1])  # half the size, rounded down
        made = self.bottom(x)
        for transition, block, skip in zip(
            self.transitions_up, self.up, reversed(skips), strict=True
        ):
            above = crop_like(transition(made), skip)  # 2h + 1 rows before: enough for odd ones
            x = torch.cat((skip, above), dim=1)
            made = block(x)
        logits: Tensor = self.classifier(torch.cat((x, made), dim=1))
        return [logits] if self.training else logits


def _layer(in_channels: int, out_channels: int, kernel_size: int, dropout: float) -> nn.Sequential:
    """Norm, ReLU, convolution, dropout: table 1."""
    return nn.Sequential(
        nn.BatchNorm2d(in_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2),
        nn.Dropout2d(dropout),
    )


def build(
    num_classes: int,
    *,
    layers: tuple[int, ...] = (4, 4, 4, 4, 4, 4),
    growth: int = 16,
) -> FCDenseNet:
    """An FC-DenseNet; `layers` of the blocks on the way down and of the one at the bottom."""
    return FCDenseNet(num_classes, layers, growth)
