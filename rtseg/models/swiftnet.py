"""SwiftNet: a ladder of light up-sampling blocks over a ResNet-18, with spatial pyramid pooling.

Orsic et al., "In Defense of Pre-trained ImageNet Architectures for Real-time Semantic Segmentation
of Road-driving Images", CVPR 2019: the single-scale model of section 3 and figure 3. Skips branch
off before the last ReLU of a stage. The pyramid's grids have as many columns as keep their cells
square, and the batch norms in it PyTorch's momentum.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtseg.models import Reported, Variant
from rtseg.models.backbones.resnet import PLAIN_STEM, BasicBlock, ResNet
from rtseg.models.context import adaptive_average
from rtseg.models.layers import Network, NormReLUConv, preactivated_head
from rtseg.models.resampling import resize_like

PAPER = (
    "In Defense of Pre-trained ImageNet Architectures for Real-time Semantic Segmentation "
    "of Road-driving Images"
)
YEAR = 2019
VARIANTS = {
    "swiftnet-r18": Variant(
        {},
        (
            Reported(0.754),
            Reported(0.755, split="test", fps=39.9, size=(1024, 2048), device="GTX 1080 Ti"),
        ),
    )
}


class LinearResNet(ResNet):
    """A ResNet-18 whose stages end before their last ReLU; it comes before the next stage.

    Forward: (N, 3, H, W) to four maps of strides 4 to 32, any sign.
    """

    def __init__(self) -> None:
        super().__init__(PLAIN_STEM)
        for stage in self.stages:
            assert isinstance(stage, nn.Sequential)
            assert isinstance(stage[-1], BasicBlock)
            stage[-1].relu = nn.Identity()

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
            x = F.relu(x)
        return features


class SpatialPyramid(nn.Module):
    """Spatial pyramid pooling on grids of 8, 4 and 2 rows: (N, in, h, w) to (N, out, h, w).

    Section 3, after He et al., ECCV 2014 and PSPNet.
    """

    def __init__(self, in_channels: int, out_channels: int, rows: tuple[int, ...] = (8, 4, 2)):
        super().__init__()
        self.rows = rows
        width = out_channels // len(rows)
        self.reduce = NormReLUConv(in_channels, out_channels, 1)
        self.levels = nn.ModuleList(NormReLUConv(out_channels, width, 1) for _ in rows)
        self.fuse = NormReLUConv(out_channels + len(rows) * width, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        height, width = x.shape[-2:]
        joined = [x]
        for rows, level in zip(self.rows, self.levels, strict=True):
            # rows * width / height, rounded
            columns = (2 * rows * width + height) // (2 * height)
            columns = torch.sym_max(1, columns)  # type: ignore[no-untyped-call]
            pooled = adaptive_average(x, (rows, columns))
            joined.append(resize_like(level(pooled), x))
        out: Tensor = self.fuse(torch.cat(joined, dim=1))
        return out


class SwiftNet(Network):
    """Backbone, spatial pyramid pooling, three up-sampling modules, classifier.

    Section 3, "Upsampling decoder": a module adds the skip, brought to as many channels by a 1x1
    convolution, to the up-sampled map, and blends them by a 3x3 one; the last one's is the head's.

    Args:
        num_classes: C.
        width: channels of the decoder.

    Forward: (N, 3, H, W) to logits (N, C, H / 4, W / 4); in training mode a list of them alone.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.backbone = LinearResNet()
        *skips, deepest = self.backbone.channels
        self.context = SpatialPyramid(deepest, width)
        self.skips = nn.ModuleList(NormReLUConv(c, width, 1) for c in skips)
        self.blends = nn.ModuleList(NormReLUConv(width, width) for _ in skips[1:])
        self.head = preactivated_head(width, width, num_classes)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        *features, x = self.backbone(images)
        fine, middle, coarse = (skip(f) for skip, f in zip(self.skips, features, strict=True))
        x = self.context(x)  # (N, width, H / 32, W / 32)
        x = self.blends[1](resize_like(x, coarse) + coarse)
        x = self.blends[0](resize_like(x, middle) + middle)
        logits: Tensor = self.head(resize_like(x, fine) + fine)  # (N, C, H / 4, W / 4)
        return [logits] if self.training else logits


def build(num_classes: int, *, width: int = 128) -> SwiftNet:
    """A single-scale SwiftNet over ResNet-18; see the class."""
    return SwiftNet(num_classes, width)
