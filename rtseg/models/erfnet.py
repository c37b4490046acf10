"""ERFNet: residual blocks of one-dimensional convolutions, transposed convolutions upwards.

Romera et al., "ERFNet: Efficient Residual Factorized ConvNet for Real-Time Semantic Segmentation",
IEEE Transactions on Intelligent Transportation Systems 2018: section III, figure 2 and table I.
The authors train the encoder first, against labels of stride 8; here all is trained at once.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtseg.models import Release, Reported, Variant
from rtseg.models.layers import ConvBNReLU, Network

PAPER = "ERFNet: Efficient Residual Factorized ConvNet for Real-Time Semantic Segmentation"
YEAR = 2018
VARIANTS = {
    "erfnet": Variant(
        {},
        (
            Reported(0.700),
            Reported(0.680, split="test", fps=83.0, size=(360, 640), device="Titan X"),
        ),
    )
}
RELEASES = (
    Release(
        rules=(
            (r"\.conv3x1_(\d)\.", r".tall\1."),
            (r"\.conv1x3_(\d)\.", r".wide\1.0."),
            (r"\.bn(\d)\.", r".wide\1.1."),
            (r"^(decoder\.layers\.\d)\.conv\.", r"\1.0."),
            (r"^(decoder\.layers\.\d)\.bn\.", r"\1.1."),
            (r"^decoder\.output_conv\.", "classifier."),
            (r"^decoder\.layers\.", "decoder."),
        ),
        dropped=(r"encoder\.output_conv\.",),
        classifier="classifier.bias",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        source="the authors' release",
    ),
)


class Downsampler(nn.Module):
    """Convolution and max-pooling side by side.

    (N, in, H, W) to (N, out, ceil(H / 2), ceil(W / 2)).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels - in_channels, 3, 2, 1)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.max_pool2d(x, 2, ceil_mode=True)
        return torch.relu(self.bn(torch.cat((self.conv(x), pooled), dim=1)))


class NonBottleneck1D(nn.Module):
    """3x1, 1x3, and again, the second pair dilated; a shortcut: (N, C, H, W) to the same.

    Figure 2c. A norm follows each pair, ReLU each convolution.
    """

    def __init__(self, channels: int, dropout: float = 0.0, dilation: int = 1) -> None:
        super().__init__()
        reach = (dilation, 1)
        self.tall1 = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.wide1 = ConvBNReLU(channels, channels, (1, 3))
        self.tall2 = nn.Conv2d(channels, channels, (3, 1), padding=(dilation, 0), dilation=reach)
        self.wide2 = ConvBNReLU(channels, channels, (1, 3), relu=False, dilation=dilation)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        out = self.wide1(torch.relu(self.tall1(x)))
        out = self.wide2(torch.relu(self.tall2(out)))
        return torch.relu(x + self.dropout(out))


def _upsampler(in_channels: int, out_channels: int) -> nn.Sequential:
    """(N, in, h, w) to (N, out, 2h, 2w)."""
    return nn.Sequential(
        nn.ConvTranspose2d(in_channels, out_channels, 3, 2, 1, output_padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class ERFNet(Network):
    """The layers of table I.

    Args:
        num_classes: C.

    Forward: (N, 3, H, W) to logits (N, C, H, W), H and W rounded up to multiples of 8; in training
    mode a list of them alone.
    """

    output_stride = 1
    input_multiple = 8

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers = [
            Downsampler(16, 64),
            *(NonBottleneck1D(64, 0.03) for _ in range(5)),
            Downsampler(64, 128),
            *(NonBottleneck1D(128, 0.3, dilation) for dilation in (2, 4, 8, 16) * 2),
        ]
        self.encoder = nn.Sequential(
            OrderedDict(initial_block=Downsampler(3, 16), layers=nn.Sequential(*layers))
        )
        self.decoder = nn.Sequential(
            _upsampler(128, 64), NonBottleneck1D(64), NonBottleneck1D(64),
            _upsampler(64, 16), NonBottleneck1D(16), NonBottleneck1D(16),
        )  # fmt: skip
        self.classifier = nn.ConvTranspose2d(16, num_classes, 2, stride=2)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-3  # the published network's

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        x = self.encoder(images)  # 128 at 1/8
        logits: Tensor = self.classifier(self.decoder(x))
        return [logits] if self.training else logits


def build(num_classes: int) -> ERFNet:
    """ERFNet as published; it has no options."""
    return ERFNet(num_classes)
