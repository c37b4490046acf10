"""Fast-SCNN: two branches that share their first layers, "learning to down-sample".

Poudel et al., "Fast-SCNN: Fast Semantic Segmentation Network", BMVC 2019: section 3, figure 1,
tables 1 and 3. Auxiliary heads on the shared layers and on the global features (section 3.3).
The published number of parameters does not count those of the norms.
"""

from __future__ import annotations

from torch import Tensor, nn

from rtseg.models import Reported, Variant
from rtseg.models.context import BranchFusion, PyramidPooling
from rtseg.models.layers import (
    ConvBNReLU,
    DepthwiseSeparable,
    InvertedResidual,
    Network,
    segmentation_head,
)

PAPER = "Fast-SCNN: Fast Semantic Segmentation Network"
YEAR = 2019
VARIANTS = {
    "fast-scnn": Variant(
        {},
        (
            Reported(0.686),
            Reported(0.680, split="test", fps=123.5, size=(1024, 2048), device="Titan Xp"),
        ),
    )
}


class FastSCNN(Network):
    """Shared layers to 1/8, inverted residuals and pyramid pooling at 1/32, fusion, classifier.

    Args:
        num_classes: C.
        width: channels of the global features, the fusion and the classifier.

    Forward: (N, 3, H, W) to logits (N, C, H / 8, W / 8); in training mode a list with the auxiliary
    logits of the shared layers (N, C, H / 8, W / 8) and of the global features
    (N, C, H / 32, W / 32).
    """

    output_stride = 8

    def __init__(self, num_classes: int, width: int = 128) -> None:
        super().__init__()
        self.shared = nn.Sequential(
            ConvBNReLU(3, 32, stride=2),
            DepthwiseSeparable(32, 48, 2, depthwise_relu=False),
            DepthwiseSeparable(48, 64, 2, depthwise_relu=False),
        )
        blocks: list[nn.Module] = []
        previous = 64
        for channels, stride in ((64, 2), (96, 2), (width, 1)):
            blocks.append(InvertedResidual(previous, channels, stride))
            blocks += [InvertedResidual(channels, channels) for _ in range(2)]
            previous = channels
        self.features = nn.Sequential(*blocks)
        self.context = PyramidPooling(width, width, branch_channels=width // 4)
        self.fusion = BranchFusion(64, width, width)
        self.classifier = nn.Sequential(
            DepthwiseSeparable(width, width, depthwise_relu=False),
            DepthwiseSeparable(width, width, depthwise_relu=False),
            nn.Dropout2d(0.1),
            nn.Conv2d(width, num_classes, 1),
        )
        self.auxiliary = nn.ModuleList(
            segmentation_head(channels, 32, num_classes) for channels in (64, width)
        )

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        shared = self.shared(images)  # 64 at 1/8
        context = self.context(self.features(shared))  # 128 at 1/32
        logits: Tensor = self.classifier(self.fusion(shared, context))
        if self.training:
            sources = (shared, context)
            return [logits, *(h(x) for h, x in zip(self.auxiliary, sources, strict=True))]
        return logits


def build(num_classes: int, *, width: int = 128) -> FastSCNN:
    """Fast-SCNN as published."""
    return FastSCNN(num_classes, width)
