"""ENet: bottlenecks from the second layer on, a large encoder and a small decoder.

Paszke et al., "ENet: A Deep Neural Network Architecture for Real-Time Semantic Segmentation", 2016:
section 3, table 1 and figure 2. Where the paper is silent the code follows the authors' release: a
quarter of a bottleneck's output channels inside it, a 2x2 transposed convolution last. There are
PReLUs in the decoder too, as in the paper's figure 3. The pooling's places are one-hot maps (see
`resampling`). The authors train the encoder first, against labels of stride 8; here all is trained
at once.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtseg.models import Reported, Variant
from rtseg.models.layers import ConvBNReLU, Network
from rtseg.models.resampling import max_pool_with_place, max_unpool

PAPER = "ENet: A Deep Neural Network Architecture for Real-Time Semantic Segmentation"
YEAR = 2016
VARIANTS = {
    "enet": Variant(
        {},
        (
            # Tables 2, 4 and 5.
            Reported(0.583, split="test", fps=21.6, size=(1080, 1920), device="Titan X"),
            Reported(0.513, data="camvid", split="test"),
        ),
    )
}


def _branch(
    in_channels: int, out_channels: int, body: list[nn.Module], entry: int, dropout: float
) -> nn.Sequential:
    """A bottleneck's second branch: 1x1 (or 2x2 of stride 2), `body`, 1x1, dropout."""
    inside = out_channels // 4
    return nn.Sequential(
        nn.Conv2d(in_channels, inside, entry, entry, bias=False),
        nn.BatchNorm2d(inside),
        nn.PReLU(inside),
        *body,
        nn.BatchNorm2d(inside),
        nn.PReLU(inside),
        ConvBNReLU(inside, out_channels, 1, relu=False),
        nn.Dropout2d(dropout),
    )


def _conv(channels: int, dilation: int = 1) -> nn.Module:
    return nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)


class Bottleneck(nn.Module):
    """Same size and width: 3x3, dilated, or `asymmetric`, 5x1 and 1x5: (N, C, H, W) to the same."""

    def __init__(
        self, channels: int, dropout: float, *, dilation: int = 1, asymmetric: bool = False
    ) -> None:
        super().__init__()
        inside = channels // 4
        body: list[nn.Module] = [_conv(inside, dilation)]
        if asymmetric:
            body = [
                nn.Conv2d(inside, inside, (5, 1), padding=(2, 0), bias=False),
                nn.Conv2d(inside, inside, (1, 5), padding=(0, 2), bias=False),
            ]
        self.branch = _branch(channels, channels, body, 1, dropout)
        self.activation = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(x + self.branch(x))
        return out


class DownBottleneck(nn.Module):
    """Max-pooling, widened by zeros, beside a branch: (N, in, H, W) to (N, out, H / 2, W / 2).

    Gives the places of the maxima too.
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.widen = out_channels - in_channels
        body = [_conv(out_channels // 4)]
        self.branch = _branch(in_channels, out_channels, body, 2, dropout)
        self.activation = nn.PReLU(out_channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled, place = max_pool_with_place(x)
        pooled = F.pad(pooled, (0, 0, 0, 0, 0, self.widen))
        return self.activation(pooled + self.branch(x)), place


class UpBottleneck(nn.Module):
    """1x1 and unpooling beside a transposed branch: (N, in, h, w) to (N, out, 2h, 2w)."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        inside = out_channels // 4
        turned = partial(nn.ConvTranspose2d, stride=2, padding=1, output_padding=1, bias=False)
        self.main = ConvBNReLU(in_channels, out_channels, 1, relu=False)
        self.branch = _branch(in_channels, out_channels, [turned(inside, inside, 3)], 1, dropout)
        self.activation = nn.PReLU(out_channels)

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        out: Tensor = self.activation(max_unpool(self.main(x), place) + self.branch(x))
        return out


class ENet(Network):
    """The stages of table 1, by its numbers.

    Args:
        num_classes: C.

    Forward: (N, 3, H, W) to logits (N, C, H, W), H and W rounded up to multiples of 8; in training
    mode a list of them alone.
    """

    output_stride = 1
    input_multiple = 8

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.initial = nn.Conv2d(3, 13, 3, 2, 1, bias=False)
        self.initial_norm = nn.Sequential(nn.BatchNorm2d(16), nn.PReLU(16))
        self.down1 = DownBottleneck(16, 64, 0.01)
        self.stage1 = nn.Sequential(*(Bottleneck(64, 0.01) for _ in range(4)))
        self.down2 = DownBottleneck(64, 128, 0.1)
        self.stage2 = self._dilated_stage()
        self.stage3 = self._dilated_stage()
        self.up4 = UpBottleneck(128, 64, 0.1)
        self.stage4 = nn.Sequential(*(Bottleneck(64, 0.1) for _ in range(2)))
        self.up5 = UpBottleneck(64, 16, 0.1)
        self.stage5 = Bottleneck(16, 0.1)
        self.classifier = nn.ConvTranspose2d(16, num_classes, 2, stride=2)

    @staticmethod
    def _dilated_stage() -> nn.Sequential:
        """Two rounds of 3x3, dilated, asymmetric, dilated, the dilation doubled each time."""
        blocks: list[nn.Module] = []
        for first, second in ((2, 4), (8, 16)):
            blocks += [
                Bottleneck(128, 0.1),
                Bottleneck(128, 0.1, dilation=first),
                Bottleneck(128, 0.1, asymmetric=True),
                Bottleneck(128, 0.1, dilation=second),
            ]
        return nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        # Written so that the exporter can prove the sizes of all later maps to be even.
        below, beside = ((n + 7) // 8 * 8 - n for n in images.shape[-2:])
        images = F.pad(images, (0, beside, 0, below), mode="replicate")
        pooled = F.max_pool2d(images, 2, ceil_mode=True)
        x = torch.cat((self.initial(images), pooled), dim=1)  # 16 at 1/2
        x, place1 = self.down1(self.initial_norm(x))
        x, place2 = self.down2(self.stage1(x))  # 128 at 1/8
        x = self.stage3(self.stage2(x))
        x = self.stage4(self.up4(x, place2))  # 64 at 1/4
        x = self.stage5(self.up5(x, place1))  # 16 at 1/2
        logits: Tensor = self.classifier(x)
        return [logits] if self.training else logits


def build(num_classes: int) -> ENet:
    """ENet as published; it has no options."""
    return ENet(num_classes)
