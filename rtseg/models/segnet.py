"""SegNet: a decoder that puts values back to where the encoder's max-pooling took them from.

Badrinarayanan et al., "SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image
Segmentation", TPAMI 2017: section 3 and figures 2 and 3 (SegNet, the thirteen convolutions of
VGG-16 and their mirror image), section 3.1 (SegNet-Basic, four 7x7 convolutions each way).

Pooling and unpooling are made of comparisons and products (see `resampling`), because TensorRT
has neither. Images of odd sizes are extended by their border to whole windows, and the logits cut
back.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from rtseg.models import Reported, Variant
from rtseg.models.backbones.vgg import DEPTHS, VGG16
from rtseg.models.layers import ConvBNReLU, Network
from rtseg.models.resampling import crop_like, max_pool_with_place, max_unpool

PAPER = "SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image Segmentation"
YEAR = 2017
VARIANTS = {
    "segnet-basic": Variant({"basic": True}, (Reported(0.463, data="camvid", split="test"),)),
    # Table 3, trained on 3,433 pictures of several data sets.
    "segnet": Variant({}, (Reported(0.601, data="camvid and 3,000 more images", split="test"),)),
}


class SegNet(Network):
    """Encoders with max-pooling, decoders with unpooling, one for one; a classifier.

    Args:
        encoders: keep the size of a map; each is pooled after.
        decoders: the same, coarsest first; each is unpooled before.
        classifier: to C channels.

    Forward: (N, 3, H, W) to logits (N, C, H, W); in training mode a list of them alone.
    """

    output_stride = 1

    def __init__(
        self, encoders: list[nn.Module], decoders: list[nn.Module], classifier: nn.Module
    ) -> None:
        super().__init__()
        self.input_multiple = 2 ** len(encoders)
        self.encoders = nn.ModuleList(encoders)
        self.decoders = nn.ModuleList(decoders)
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        height, width = images.shape[-2:]
        multiple = self.input_multiple
        x = F.pad(images, (0, -width % multiple, 0, -height % multiple), mode="replicate")
        places: list[Tensor] = []
        for encoder in self.encoders:
            x, place = max_pool_with_place(encoder(x))
            places.append(place)
        for decoder, place in zip(self.decoders, reversed(places), strict=True):
            x = decoder(max_unpool(x, place))
        logits: Tensor = crop_like(self.classifier(x), images)
        return [logits] if self.training else logits


def _segnet(num_classes: int) -> SegNet:
    """VGG-16 with norms, and its mirror image, whose last convolution is the classifier."""
    widths = VGG16.channels
    decoders: list[nn.Module] = []
    for i in (4, 3, 2, 1, 0):
        after = widths[max(i - 1, 0)]
        same = [ConvBNReLU(widths[i], widths[i]) for _ in range(DEPTHS[i] - 1)]
        decoders.append(nn.Sequential(*same, *([ConvBNReLU(widths[i], after)] if i else [])))
    classifier = nn.Conv2d(widths[0], num_classes, 3, padding=1)
    return SegNet(list(VGG16(batch_norm=True).stages), decoders, classifier)


def _segnet_basic(num_classes: int, width: int = 64) -> SegNet:
    """Four 7x7 convolutions each way; no biases, and no ReLU in the decoder (section 3.1)."""
    encoders = [ConvBNReLU(3 if i == 0 else width, width, 7) for i in range(4)]
    decoders = [ConvBNReLU(width, width, 7, relu=False) for _ in range(4)]
    return SegNet(list(encoders), list(decoders), nn.Conv2d(width, num_classes, 1))


def build(num_classes: int, *, basic: bool = False) -> SegNet:
    """A SegNet, or with `basic` the small one."""
    return _segnet_basic(num_classes) if basic else _segnet(num_classes)
