"""FCN: a classifier slid over the image, its scores refined by those of finer layers.

Long et al., "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015 and (Shelhamer,
Long & Darrell) TPAMI 2017: fc6 and fc7 as convolutions (CVPR section 3.1), 1x1 scores of pool4 and
pool3 added after up-sampling twofold (section 4.2 and figure 3), transposed convolutions for that
which start as bilinear interpolation and are learned (section 3.3), scores of the skips that start
at zero.

Two things differ, so that every size works and logits and image lie over each other without a
table of offsets. The paper pads the image by 100 pixels and crops the result; here convolutions
pad their own maps ("same"), and pooling rounds up. Its last up-sampling (32-, 16- or 8-fold) is
fixed to bilinear; that one has no weights, so it is not in the network: FCN-32s has an output
stride of 32, and whoever takes the labels up-samples. Training is of all layers at once.

`fcn-r50` is what torchvision calls FCN: a dilated ResNet, a head of one 3x3 convolution in place
of fc6 and fc7, and an auxiliary head; from its `fcn_resnet50`.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtseg.errors import ConfigError
from rtseg.models import Release, Reported, Variant
from rtseg.models.backbones.alexnet import AlexNet
from rtseg.models.backbones.resnet import TORCHVISION_KEYS, ResNet, resnet
from rtseg.models.backbones.vgg import VGG16, fully_convolutional
from rtseg.models.layers import Network, segmentation_head
from rtseg.models.resampling import crop_like

PAPER = "Fully Convolutional Networks for Semantic Segmentation"
YEAR = 2015


def _voc(miou: float) -> tuple[Reported, ...]:
    """As the authors' TPAMI paper and release give it."""
    return (Reported(miou, data="pascal-voc", split="seg11valid"),)


VARIANTS = {
    "fcn-32s-alexnet": Variant({"backbone": "alexnet"}, _voc(0.480)),
    "fcn-32s": Variant({"backbone": "vgg16"}, _voc(0.636)),
    "fcn-16s": Variant({"backbone": "vgg16", "skips": 1}, _voc(0.650)),
    "fcn-8s": Variant({"backbone": "vgg16", "skips": 2}, _voc(0.655)),
    # torchvision's own figure, on COCO's images that have the classes of PASCAL VOC.
    "fcn-r50": Variant({"backbone": "resnet50"}, (Reported(0.605, data="coco"),)),
}
RELEASES = (
    Release(
        (
            *TORCHVISION_KEYS,
            (r"^classifier\.([01])\.", r"head.0.\1."),
            (r"^classifier\.4\.", "head.2."),
        ),
        dropped=(r"aux_classifier\.",),
        classifier="head.2.weight",
        source="torchvision",
    ),
)


class TwofoldUpsampling(nn.ConvTranspose2d):
    """A 4x4 transposed convolution of stride 2 that starts as bilinear interpolation.

    Long et al., section 3.3. The map's border is repeated first, so that bilinear is what
    `interpolate(align_corners=False)` gives, at the border too.
    (N, C, h, w) to (N, C, 2h, 2w).
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 4, stride=2, padding=3, bias=False)
        taps = torch.tensor([0.25, 0.75, 0.75, 0.25])
        kernel = torch.eye(channels)[:, :, None, None] * (taps[:, None] * taps)
        with torch.no_grad():
            self.weight.copy_(kernel)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1), mode="replicate"), output_size)


class FCN(Network):
    """Backbone, fc6 and fc7, scores, and the scores of `skips` finer maps.

    Args:
        num_classes: C.
        backbone: gives maps of which the last has stride 32, each other twice the next one's size.
        kernel_size: of fc6: 6 for AlexNet, 7 for VGG-16.
        width: channels of fc6 and fc7.
        skips: 0, 1 or 2: output stride 32, 16 or 8.

    Forward: (N, 3, H, W) to logits (N, C, H / stride, W / stride); in training mode a list of them
    alone.

    AlexNet's map of stride 32 has its cells centred on the pixels 32 i, and fc6's even kernel is
    centred half a cell further: its scores lie where `align_corners=False` takes them to be.
    """

    input_multiple = 32

    def __init__(
        self,
        num_classes: int,
        backbone: AlexNet | VGG16,
        kernel_size: int,
        width: int = 4096,
        skips: int = 0,
    ) -> None:
        super().__init__()
        self.output_stride = 32 >> skips
        self.backbone = backbone
        *finer, deepest = backbone.channels
        self.fully = fully_convolutional(deepest, width, kernel_size)
        self.score = nn.Conv2d(width, num_classes, 1)
        used = finer[::-1][:skips]
        skip_scores = [nn.Conv2d(c, num_classes, 1) for c in used]
        self.skips = nn.ModuleList(skip_scores)
        self.upsamplings = nn.ModuleList(TwofoldUpsampling(num_classes) for _ in used)
        nn.init.normal_(self.score.weight, std=0.01)
        for skip in skip_scores:
            nn.init.zeros_(skip.weight)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        *finer, deepest = self.backbone(images)
        used = finer[::-1][: len(self.skips)]  # pool4 at H / 16, pool3 at H / 8
        scores: Tensor = self.score(self.fully(deepest))  # (N, C, H / 32, W / 32)
        for upsampling, skip, x in zip(self.upsamplings, self.skips, used, strict=True):
            scores = crop_like(upsampling(scores), x) + skip(x)
        return [scores] if self.training else scores


class FCNResNet(Network):
    """torchvision's FCN: a ResNet dilated to stride 8 under a 3x3 and a 1x1 convolution.

    Forward: (N, 3, H, W) to logits (N, C, H / 8, W / 8); in training mode a list with the
    auxiliary logits, of the stage before the last, as well.
    """

    output_stride = 8
    input_multiple = 8

    def __init__(self, num_classes: int, backbone: ResNet) -> None:
        super().__init__()
        self.backbone = backbone
        *_, middle, deepest = backbone.channels
        self.head = segmentation_head(deepest, deepest // 4, num_classes)
        self.auxiliary = segmentation_head(middle, middle // 4, num_classes)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        *_, middle, deepest = self.backbone(images)
        logits: Tensor = self.head(deepest)
        return [logits, self.auxiliary(middle)] if self.training else logits


def build(
    num_classes: int,
    *,
    backbone: Literal["alexnet", "vgg16", "resnet50"] = "alexnet",
    skips: int = 0,
    width: int = 4096,
) -> FCN | FCNResNet:
    """An FCN; `skips` (0, 1 or 2) are VGG-16's alone, `width` is of fc6 and fc7."""
    if skips and backbone != "vgg16":
        raise ConfigError(f"FCN has skips over vgg16 only, not over {backbone}")
    if backbone == "vgg16":
        return FCN(num_classes, VGG16(), 7, width, skips)
    if backbone == "alexnet":
        return FCN(num_classes, AlexNet(), 6, width)
    if backbone == "resnet50":
        return FCNResNet(num_classes, resnet(50, output_stride=8))
    raise ConfigError(f"FCN's backbone is alexnet, vgg16 or resnet50, not {backbone}")
