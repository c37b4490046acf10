"""ContextNet: a deep branch on the shrunk image, a shallow one on the image itself.

Poudel et al., "ContextNet: Exploring Context and Detail for Semantic Segmentation in Real-time",
BMVC 2018: section 3, figure 1, tables 1 and 2. The network is cn14, whose deep branch sees the
image at a quarter of its size; it is shrunk by averaging. The paper prunes wider networks down to
these widths; here they are trained as they are. The published number of parameters does not count
those of the norms.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from rtseg.models import Reported, Variant
from rtseg.models.context import BranchFusion
from rtseg.models.layers import ConvBNReLU, DepthwiseSeparable, InvertedResidual, Network

PAPER = "ContextNet: Exploring Context and Detail for Semantic Segmentation in Real-time"
YEAR = 2018
VARIANTS = {
    "contextnet14": Variant(
        {},
        (
            Reported(0.659),
            Reported(0.661, split="test", fps=18.3, size=(1024, 2048), device="Titan X"),
        ),
    )
}


class ContextNet(Network):
    """Detail at 1/8 of the image, context at 1/8 of the shrunk image, fusion, classifier.

    Args:
        num_classes: C.
        shrink: factor between the image and the deep branch's.

    Forward: (N, 3, H, W) to logits (N, C, H / 8, W / 8); in training mode a list of them alone.
    """

    output_stride = 8

    def __init__(self, num_classes: int, shrink: int = 4) -> None:
        super().__init__()
        self.shrink = shrink
        self.input_multiple = 8 * shrink
        self.detail = nn.Sequential(
            ConvBNReLU(3, 32, stride=2),
            DepthwiseSeparable(32, 64, 2),
            DepthwiseSeparable(64, 128, 2),
            DepthwiseSeparable(128, 128),
        )
        blocks: list[nn.Module] = [ConvBNReLU(3, 32, stride=2)]
        previous = 32
        for expansion, channels, repeats, stride in (
            (1, 32, 1, 1), (6, 32, 1, 1), (6, 48, 3, 2), (6, 64, 3, 2), (6, 96, 2, 1),
            (6, 128, 2, 1),
        ):  # fmt: skip
            for i in range(repeats):
                step = stride if i == 0 else 1
                blocks.append(
                    InvertedResidual(previous, channels, step, expansion, always_expand=True)
                )
                previous = channels
        self.context = nn.Sequential(*blocks)
        self.fusion = BranchFusion(128, 128, 128)
        self.classifier = nn.Sequential(
            DepthwiseSeparable(128, 128),
            DepthwiseSeparable(128, 128),
            nn.Dropout2d(0.1),
            nn.Conv2d(128, num_classes, 1),
        )

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        context = self.context(F.avg_pool2d(images, self.shrink))  # 128 at 1/32
        fused = self.fusion(self.detail(images), context)  # 128 at 1/8
        logits: Tensor = self.classifier(fused)
        return [logits] if self.training else logits


def build(num_classes: int, *, shrink: int = 4) -> ContextNet:
    """ContextNet; `shrink` is 4 for cn14, 2 for cn12, 8 for cn18."""
    return ContextNet(num_classes, shrink)
