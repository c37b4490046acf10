"""SCTNet: one branch of convolutions whose last stages attend like a transformer's.

Xu et al., "SCTNet: Single-Branch CNN with Transformer Semantic Information for Real-Time Semantic
Segmentation", AAAI 2024: the network of inference, with the CFBlock of section 3. The transformer
branch that teaches it, and its alignment losses, take part in training only and are left out, and
so is stochastic depth; the auxiliary head at stride 8 is here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtseg.models import Reported, Variant
from rtseg.models.backbones.dual_resolution import (
    DeepAggregation,
    dual_stem,
    residual_stage,
)
from rtseg.models.layers import ConvBNReLU, Network, preactivated_head
from rtseg.models.resampling import resize_like

PAPER = "SCTNet: Single-Branch CNN with Transformer Semantic Information for Real-Time Segmentation"
YEAR = 2024
VARIANTS = {"sctnet-s": Variant({}, (Reported(0.761),))}

HEADS = 8
KEYS = 64
"""Learned keys of each orientation, shared out among the heads."""


class ConvolutionalAttention(nn.Module):
    """Attention to learned keys that are kernels: 7x1 ones and, beside them, 1x7 ones.

    Section 3, "Convolutional attention": a convolution compares with the keys, grouped double
    normalisation (softmax over all pixels, then shares among the keys of a head) weighs them, and
    the same kernels, input and output exchanged, put the answer together.
    Forward: (N, C, h, w) to the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.tall = nn.Parameter(torch.empty(KEYS, channels, 7, 1))
        self.wide = nn.Parameter(torch.empty(KEYS, channels, 1, 7))
        for kernel in (self.tall, self.wide):
            nn.init.trunc_normal_(kernel, std=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self._attend(x, self.tall, (3, 0)) + self._attend(x, self.wide, (0, 3))

    @staticmethod
    def _attend(x: Tensor, kernel: Tensor, padding: tuple[int, int]) -> Tensor:
        likeness = F.conv2d(x, kernel, padding=padding)  # (N, KEYS, h, w)
        return F.conv2d(_double_normalised(likeness), kernel.transpose(0, 1), padding=padding)


def _double_normalised(x: Tensor) -> Tensor:
    """(N, KEYS, h, w): the softmax over pixels, over its sum along the keys of a head.

    The softmax is taken times h w, which cancels: so its values lie around 1 and not, for large
    maps, below what float16 can tell apart.
    """
    n, keys, height, width = x.shape
    x = x.reshape(n, HEADS, keys // HEADS, height * width)
    x = torch.exp(x - x.amax(dim=3, keepdim=True))
    x = x / x.mean(dim=3, keepdim=True)
    x = x / (x.sum(dim=2, keepdim=True) + 1e-6)
    return x.reshape(n, keys, height, width)


class CFBlock(nn.Module):
    """Convolutional attention, then two 3x3 convolutions, each with its own shortcut.

    Section 3, "Conv-Former block". Forward: (N, C, h, w) to the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = ConvolutionalAttention(channels)
        self.feed_forward = nn.Sequential(
            nn.BatchNorm2d(channels, eps=1e-6),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        out: Tensor = x + self.feed_forward(x)
        return out


class SCTNet(Network):
    """Residual stages to stride 16, CFBlocks at 16 and 32, pyramid pooling, head at stride 8.

    Args:
        num_classes: C.
        width: w, channels of the first stage.
        context_width: channels of each level of the pyramid pooling.
        head_width: channels in front of the classifier.

    Forward: (N, 3, H, W) to logits (N, C, H / 8, W / 8); in training mode a list with the auxiliary
    logits of the second stage, of the same size, as well.
    """

    output_stride = 8

    def __init__(self, num_classes: int, width: int, context_width: int, head_width: int) -> None:
        super().__init__()
        w = width
        self.stem = dual_stem(w)
        self.layer1 = residual_stage(w, w, 2)
        self.layer2 = residual_stage(w, 2 * w, 2, 2)
        self.layer3 = residual_stage(2 * w, 4 * w, 2, 2)
        self.former3 = CFBlock(4 * w)
        self.down = ConvBNReLU(4 * w, 8 * w, stride=2)
        self.former4 = CFBlock(8 * w)
        self.former5 = CFBlock(8 * w)
        self.context = DeepAggregation(8 * w, context_width, 2 * w)
        self.head = preactivated_head(4 * w, head_width, num_classes)
        self.auxiliary = preactivated_head(2 * w, 2 * w, num_classes)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        x = self.layer1(self.stem(images))  # (N, w, H / 4, W / 4)
        fine = self.layer2(F.relu(x))  # (N, 2w, H / 8, W / 8)
        x = self.layer3(F.relu(fine))
        x = self.former3(F.relu(x))  # (N, 4w, H / 16, W / 16)
        x = self.former4(self.down(x))
        x = self.former5(F.relu(x))  # (N, 8w, H / 32, W / 32)
        x = resize_like(self.context(x), fine)  # (N, 2w, H / 8, W / 8)
        logits: Tensor = self.head(torch.cat((fine, x), dim=1))
        return [logits, self.auxiliary(fine)] if self.training else logits


def build(
    num_classes: int, *, width: int = 32, context_width: int = 64, head_width: int = 128
) -> SCTNet:
    """An SCTNet, SCTNet-S by default; see the class."""
    return SCTNet(num_classes, width, context_width, head_width)
