"""EfficientNet-Lite0: EfficientNet-B0 without squeeze-and-excitation and with ReLU6.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019
(table 1); the Lite form, which has only what integer accelerators run well, is of the authors'
release, 2020. The 1x1 convolution to 1280 channels in front of the classifier is left out.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from rtseg.models.backbones.mobilenet import InvertedResiduals, Row


def efficientnet_lite0(*, output_stride: Literal[8, 16, 32] = 32) -> InvertedResiduals:
    """Maps of 24, 40, 112 and 320 channels at strides 4, 8, 16 and 32."""
    stages: tuple[tuple[Row, ...], ...] = (
        ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3)),
        ((6, 40, 2, 2, 5),),
        ((6, 80, 3, 2, 3), (6, 112, 3, 1, 5)),
        ((6, 192, 4, 2, 5), (6, 320, 1, 1, 3)),
    )
    network = InvertedResiduals(stages, output_stride=output_stride)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3  # the published network's
    return network
