"""GCN: large separable kernels classify densely, residual blocks refine the boundaries.

Peng et al., "Large Kernel Matters - Improve Semantic Segmentation by Global Convolutional
Network", CVPR 2017: the global convolution (section 3.1, figure 2B), boundary refinement (section
3.2, figure 2C), the whole with transposed convolutions (figure 2A). Everything after the backbone
has as many channels as there are classes. Left out: ResNet-GCN, whose backbone has large kernels.
"""

from __future__ import annotations

from torch import Tensor, nn

from rtseg.models import Variant
from rtseg.models.backbones.resnet import ResNet, resnet
from rtseg.models.layers import Network
from rtseg.models.resampling import crop_like

PAPER = "Large Kernel Matters - Improve Semantic Segmentation by Global Convolutional Network"
YEAR = 2017
VARIANTS = {
    "gcn-r18": Variant({"kernel_size": 7}),
    "gcn-r50": Variant({"depth": 50}),
    "gcn-r101": Variant({"depth": 101}),
}


class GlobalConvolution(nn.Module):
    """The sum of a k x 1 and a 1 x k convolution in either order: a dense k x k window.

    (N, in_channels, h, w) to (N, out_channels, h, w).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 15) -> None:
        super().__init__()
        tall, wide = (kernel_size, 1), (1, kernel_size)
        self.tall_first = _pair(in_channels, out_channels, tall, wide)
        self.wide_first = _pair(in_channels, out_channels, wide, tall)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.tall_first(x) + self.wide_first(x)
        return out


def _pair(
    in_channels: int, out_channels: int, first: tuple[int, int], second: tuple[int, int]
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, first, padding=(first[0] // 2, first[1] // 2)),
        nn.Conv2d(out_channels, out_channels, second, padding=(second[0] // 2, second[1] // 2)),
    )


class BoundaryRefinement(nn.Module):
    """Scores and a correction by two 3x3 convolutions: (N, C, h, w) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.correction = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.correction(x)
        return out


class GlobalConvolutionalNetwork(Network):
    """Backbone; global convolution and refinement per level; doubled and summed up to full size.

    Args:
        num_classes: C.
        backbone: gives four feature maps at strides 4, 8, 16 and 32.
        kernel_size: k of the global convolutions, odd.

    Forward: (N, 3, H, W) to logits (N, C, H, W); in training mode a list of them alone.
    """

    output_stride = 1
    input_multiple = 32

    def __init__(self, num_classes: int, backbone: ResNet, kernel_size: int = 15) -> None:
        super().__init__()
        self.backbone = backbone
        self.levels = nn.ModuleList(
            nn.Sequential(
                GlobalConvolution(channels, num_classes, kernel_size),
                BoundaryRefinement(num_classes),
            )
            for channels in backbone.channels
        )
        # Strides 32 to 1: the first three are summed with a level, the last two are not.
        self.doublings = nn.ModuleList(
            nn.ConvTranspose2d(num_classes, num_classes, 4, stride=2, padding=1) for _ in range(5)
        )
        self.refinements = nn.ModuleList(BoundaryRefinement(num_classes) for _ in range(5))

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        features = self.backbone(images)
        *finer, logits = (level(x) for level, x in zip(self.levels, features, strict=True))
        for double, refine in zip(self.doublings, self.refinements, strict=True):
            logits = double(logits)
            if finer:
                level = finer.pop()
                logits = crop_like(logits, level) + level
            logits = refine(logits)
        logits = crop_like(logits, images)
        return [logits] if self.training else logits


def build(
    num_classes: int, *, depth: int = 18, kernel_size: int = 15
) -> GlobalConvolutionalNetwork:
    """A GCN over the ResNet of this depth."""
    return GlobalConvolutionalNetwork(num_classes, resnet(depth), kernel_size)
