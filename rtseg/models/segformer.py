"""SegFormer: a Mix Transformer and a decoder of 1x1 convolutions alone.

Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
NeurIPS 2021: figure 2 and section 3.2.

For inference `SegFormerHead.fold` multiplies the decoder's two linear layers and its norm into one
1x1 convolution per level, in front of the resizing, with which it commutes: a seventeenth of the
decoder's arithmetic, and the same logits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rtseg.models import Release, Reported, Variant
from rtseg.models.backbones.mit import MixTransformer, Pointwise
from rtseg.models.layers import Network
from rtseg.models.resampling import resize_like

PAPER = "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers"
YEAR = 2021
_B1 = {"channels": (64, 128, 320, 512)}
VARIANTS = {
    "segformer-b0": Variant({}, (Reported(0.762, fps=15.2, size=(1024, 2048)),)),
    "segformer-b1": Variant(_B1, (Reported(0.785),)),
    "segformer-b2": Variant({**_B1, "depths": (3, 4, 6, 3), "width": 768}, (Reported(0.810),)),
}
RELEASES = (
    Release(
        rules=(
            (r"^segformer\.encoder\.patch_embeddings\.", "backbone.embeddings."),
            (r"(\.embeddings\.\d)\.layer_norm\.", r"\1.norm."),
            (r"^segformer\.encoder\.layer_norm\.", "backbone.norms."),
            (r"^segformer\.encoder\.block\.", "backbone.stages."),
            (r"\.layer_norm_(\d)\.", r".norm\1."),
            (r"\.attention\.self\.sr\.", ".attention.reduce."),
            (r"\.attention\.self\.layer_norm\.", ".attention.reduce_norm."),
            (r"\.attention\.self\.", ".attention."),
            (r"\.attention\.output\.dense\.", ".attention.output."),
            (r"\.mlp\.dense1\.", ".mlp.expand."),
            (r"\.mlp\.dense2\.", ".mlp.project."),
            (r"\.mlp\.dwconv\.dwconv\.", ".mlp.depthwise."),
            (r"^decode_head\.linear_c\.(\d)\.proj\.", r"head.levels.\1."),
            (r"^decode_head\.linear_fuse\.", "head.fuse."),
            (r"^decode_head\.batch_norm\.", "head.norm."),
            (r"^decode_head\.classifier\.", "classifier."),
        ),
        classifier="classifier.weight",
        source="NVIDIA's release on Hugging Face",
    ),
)


class SegFormerHead(nn.Module):
    """A linear layer per level, all resized to the finest and joined, a linear layer, norm, ReLU.

    Maps (N, channels[i], h / 2**i, w / 2**i) to (N, width, h, w).
    """

    def __init__(self, channels: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(Pointwise(c, width) for c in channels)
        self.fuse = nn.Conv2d(len(channels) * width, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.folded: nn.ModuleList | None = None

    def forward(self, maps: list[Tensor]) -> Tensor:
        if self.folded is not None:
            finest, *others = (conv(x) for conv, x in zip(self.folded, maps, strict=True))
            for x in others:
                finest = finest + resize_like(x, finest)
            return torch.relu(finest)
        finest, *others = (level(x) for level, x in zip(self.levels, maps, strict=True))
        # The published order is coarsest first.
        joined = torch.cat([*(resize_like(x, finest) for x in reversed(others)), finest], dim=1)
        return torch.relu(self.norm(self.fuse(joined)))

    @torch.no_grad()
    def fold(self) -> None:
        """One 1x1 convolution per level in place of all, for inference."""
        if self.folded is not None:
            return
        fuse = torch.nn.utils.fusion.fuse_conv_bn_eval(self.fuse, self.norm)
        assert fuse.bias is not None
        shares = fuse.weight.flatten(1).chunk(len(self.levels), dim=1)
        self.folded = nn.ModuleList()
        for level, share in zip(self.levels, reversed(shares), strict=True):
            assert isinstance(level, Pointwise)
            conv = nn.Conv2d(level.in_features, fuse.out_channels, 1, device=share.device)
            assert conv.bias is not None
            conv.weight.copy_((share @ level.weight)[:, :, None, None])
            conv.bias.copy_(share @ level.bias + (0 if self.folded else fuse.bias))
            self.folded.append(conv)
        del self.levels, self.fuse, self.norm


class SegFormer(Network):
    """Mix Transformer, head, classifier.

    Args:
        num_classes: C.
        backbone: gives four maps at strides 4, 8, 16 and 32.
        width: channels of the head.

    Forward: (N, 3, H, W) to logits (N, C, H / 4, W / 4); in training mode a list of them alone.
    """

    def __init__(self, num_classes: int, backbone: MixTransformer, width: int = 256) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = SegFormerHead(backbone.channels, width)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        features = self.head(self.backbone(images))
        logits: Tensor = self.classifier(self.dropout(features))
        return [logits] if self.training else logits


def build(
    num_classes: int,
    *,
    channels: tuple[int, int, int, int] = (32, 64, 160, 256),
    depths: tuple[int, int, int, int] = (2, 2, 2, 2),
    heads: tuple[int, int, int, int] = (1, 2, 5, 8),
    width: int = 256,
) -> SegFormer:
    """A SegFormer of the given widths and depths; the defaults are B0's."""
    return SegFormer(num_classes, MixTransformer(channels, depths, heads), width)
