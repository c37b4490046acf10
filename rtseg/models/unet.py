"""U-Net: an encoder, and a decoder that joins each of the encoder's maps at its own resolution.

Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015:
figure 1 and section 2 (architecture), figure 2 (overlap-tile strategy); and Zhang et al., "Road
Extraction by Deep Residual U-Net", GRSL 2018: figure 2 and table I.

`unet-valid` is the paper's network: convolutions without padding, cropped skips, and a border of
image around the tile, which is mirrored where there is none. Here every image is such a tile, so
the logits have its size; `unet` pads its maps with zeros instead. `unet-bilinear` halves the
channels by a 1x1 convolution and interpolates, where the paper has transposed convolutions of 2x2.
Two things differ from the paper: batch normalisation behind each convolution, as everyone trains
it today, in place of the dropout at the end of the encoder; and no weights for cell borders.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from rtseg.errors import ConfigError
from rtseg.models import Variant
from rtseg.models.layers import Network
from rtseg.models.resampling import crop_like

PAPER = "U-Net: Convolutional Networks for Biomedical Image Segmentation"
YEAR = 2015
VARIANTS = {
    "unet": Variant(),
    "unet-bilinear": Variant({"up": "bilinear"}),
    "unet-valid": Variant({"padding": "valid"}),
    "res-unet": Variant(
        {"residual": True, "channels": (64, 128, 256, 512)},
        paper="Road Extraction by Deep Residual U-Net",
        year=2018,
    ),
}


class UNet(Network):
    """Two 3x3 convolutions per level; max-pooling down, twofold up-sampling and a skip up.

    Args:
        num_classes: C.
        channels: of the levels, finest first.
        padding: "same", or "valid": none, and a mirrored border around the image instead.
        up: "transposed" convolutions of 2x2, or "bilinear".

    Forward: (N, 3, H, W) to logits (N, C, H, W); in training mode a list of them alone.
    """

    output_stride = 1

    def __init__(
        self,
        num_classes: int,
        channels: tuple[int, ...] = (64, 128, 256, 512, 1024),
        padding: Literal["same", "valid"] = "same",
        up: Literal["transposed", "bilinear"] = "transposed",
    ) -> None:
        super().__init__()
        self.input_multiple = 2 ** (len(channels) - 1)
        self.valid = padding == "valid"
        downwards = [(3, channels[0]), *pairwise(channels)]
        upwards = list(pairwise(reversed(channels)))
        self.encoders = nn.ModuleList(_two_convolutions(a, b, padding) for a, b in downwards)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.upsamplings = nn.ModuleList(_twofold(a, b, up) for a, b in upwards)
        self.decoders = nn.ModuleList(_two_convolutions(2 * b, b, padding) for _, b in upwards)
        self.classifier = nn.Conv2d(channels[0], num_classes, 1)
        # What is wider of a skip than of its partner, on each side: 4, 16, 40, 88 from the coarsest
        # on, because without padding the two convolutions of a level take off 2 cells each way.
        self.margins = [12 * 2**i - 8 for i in range(len(upwards))]

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        x = self._with_border(images) if self.valid else images
        skips: list[Tensor] = []
        for encoder in self.encoders[:-1]:
            skips.append(encoder(x))
            x = self.pool(skips[-1])
        x = self.encoders[-1](x)  # (N, 1024, H / 16, W / 16)
        steps = zip(self.upsamplings, self.decoders, skips[::-1], self.margins, strict=True)
        for upsampling, decoder, skip, margin in steps:
            x = upsampling(x)
            if self.valid:
                skip = skip[..., margin:-margin, margin:-margin]
            else:
                x = crop_like(x, skip)
            x = decoder(torch.cat((skip, x), dim=1))
        logits: Tensor = self.classifier(crop_like(x, images) if self.valid else x)
        return [logits] if self.training else logits

    def _with_border(self, images: Tensor) -> Tensor:
        """The image in a mirrored border: what the unpadded network makes (H, W) logits of.

        With n poolings, b cells at the end become 2^n b - 4 (2^n - 1) logits, as many as are
        needed at least, and the border around these is 92 pixels for the paper's n = 4
        (572 -> 388). The logits that are too many lie to the bottom right.
        """
        factor, border = self.input_multiple, self.margins[-1] + 4
        lost = 4 * (factor - 1)
        for axis in (2, 3):
            length = images.shape[axis]
            made = (length + lost + factor - 1) // factor * factor - lost
            last = torch.arange(length, device=images.device)[-1:]  # length - 1: exports as tensor
            place = torch.arange(made + 2 * border, device=images.device) - border
            place = place % (2 * last)  # small images are mirrored more than once
            images = images.index_select(axis, torch.minimum(place, 2 * last - place))
        return images


class ResidualUnit(nn.Module):
    """Norm, ReLU and 3x3 convolution, twice, and a shortcut: Zhang et al., figure 1b.

    (N, in, H, W) to (N, out, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, norm_first: bool = True
    ) -> None:
        super().__init__()
        first = (nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True)) if norm_first else ()
        self.layers = nn.Sequential(
            *first,
            nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x) + self.shortcut(x)
        return out


class ResUNet(Network):
    """A residual unit per level, of stride 2 on the way down; up-sampling and a skip on the way up.

    Zhang et al., figure 2 and table I. `channels` of the levels, finest first; forward as `UNet`.
    """

    output_stride = 1

    def __init__(self, num_classes: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.input_multiple = 2 ** (len(channels) - 1)
        units = [ResidualUnit(a, b, stride=2) for a, b in pairwise(channels)]
        entry = ResidualUnit(3, channels[0], norm_first=False)
        self.encoders = nn.ModuleList([entry, *units])
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        upwards = pairwise(reversed(channels))
        self.decoders = nn.ModuleList(ResidualUnit(a + b, b) for a, b in upwards)
        self.classifier = nn.Conv2d(channels[0], num_classes, 1)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        x = images
        maps: list[Tensor] = []
        for encoder in self.encoders:
            x = encoder(x)
            maps.append(x)
        for decoder, skip in zip(self.decoders, maps[-2::-1], strict=True):
            x = decoder(torch.cat((crop_like(self.up(x), skip), skip), dim=1))
        logits: Tensor = self.classifier(x)
        return [logits] if self.training else logits


def _two_convolutions(in_channels: int, out_channels: int, padding: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=padding, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, 3, padding=padding, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def _twofold(in_channels: int, out_channels: int, up: str) -> nn.Module:
    """(N, in, h, w) to (N, out, 2h, 2w)."""
    if up == "transposed":
        return nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
    convolution = nn.Conv2d(in_channels, out_channels, 1)
    return nn.Sequential(convolution, nn.Upsample(scale_factor=2, mode="bilinear"))


def build(
    num_classes: int,
    *,
    channels: tuple[int, ...] = (64, 128, 256, 512, 1024),
    padding: Literal["same", "valid"] = "same",
    up: Literal["transposed", "bilinear"] = "transposed",
    residual: bool = False,
) -> UNet | ResUNet:
    """A U-Net, or with `residual` a residual one, which has neither `padding` nor `up`."""
    if padding not in ("same", "valid") or up not in ("transposed", "bilinear"):
        raise ConfigError(
            f"padding is same or valid, not {padding}; up is transposed or bilinear, not {up}"
        )
    return ResUNet(num_classes, channels) if residual else UNet(num_classes, channels, padding, up)
