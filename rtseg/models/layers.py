"""Layers that several networks share: the network itself, convolution blocks, heads.

Context modules are in `context.py`, everything that changes the size of a map in `resampling.py`.
All of them export to ONNX with dynamic height and width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Network(nn.Module):
    """What a segmentation network states of itself; classes override, or set it per instance.

    Attributes:
        output_stride: input pixels per logit along each axis.
        align_corners: how its logits are to be up-sampled.
        input_multiple: height and width of the input must be multiples of it.
        boundary_head: whether the last of its auxiliary heads is one of boundaries: with a single
            channel, high where two classes meet.

    Forward: (N, 3, H, W) to logits (N, C, H / output_stride, W / output_stride); in training mode
    a list of these and of the auxiliary heads' logits, at any stride.
    """

    output_stride: int = 4
    align_corners: bool = False
    input_multiple: int = 32
    boundary_head: bool = False


class ConvBNReLU(nn.Sequential):
    """Convolution without bias, batch normalisation, activation; "same" padding for odd kernels.

    Args:
        kernel_size: one number, or (height, width).
        relu: whether an activation follows.
        activation: which; called without arguments.

    (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int = 1,
        relu: bool = True,
        *,
        dilation: int = 1,
        groups: int = 1,
        activation: Callable[[], nn.Module] | None = None,
    ) -> None:
        kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        padding = (dilation * (kernel[0] // 2), dilation * (kernel[1] // 2))
        layers: list[nn.Module] = [
            nn.Conv2d(
                in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=False
            ),
            nn.BatchNorm2d(out_channels),
        ]
        if relu:
            layers.append(nn.ReLU(inplace=True) if activation is None else activation())
        super().__init__(*layers)


class NormReLUConv(nn.Sequential):
    """Batch normalisation, ReLU, convolution with "same" padding: a convolution, pre-activated.

    He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016, section 4.
    (N, in_channels, H, W) to (N, out_channels, H, W).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__(
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(
                in_channels, out_channels, kernel_size,
                padding=kernel_size // 2, groups=groups, bias=bias,
            ),
        )  # fmt: skip


class DepthwiseSeparable(nn.Sequential):
    """A 3x3 convolution per channel, then a 1x1 one, each with norm and ReLU.

    Howard et al., "MobileNets", 2017, section 3.1. `depthwise_relu=False` leaves out the first
    activation. (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        depthwise_relu: bool = True,
        *,
        dilation: int = 1,
    ) -> None:
        super().__init__(
            ConvBNReLU(
                in_channels, in_channels, 3, stride, depthwise_relu,
                dilation=dilation, groups=in_channels,
            ),
            ConvBNReLU(in_channels, out_channels, 1),
        )  # fmt: skip


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, linear 1x1 projection; a shortcut where shapes agree.

    Sandler et al., "MobileNetV2", CVPR 2018, section 3.3 and figure 4b. Without expansion
    (`expansion == 1`) the first convolution is left out where `always_expand` is not set.
    (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        expansion: int = 6,
        kernel_size: int = 3,
        *,
        dilation: int = 1,
        always_expand: bool = False,
        activation: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.shortcut = stride == 1 and in_channels == out_channels
        layers: list[nn.Module] = []
        if expansion != 1 or always_expand:
            layers.append(ConvBNReLU(in_channels, hidden, 1, activation=activation))
        layers += [
            ConvBNReLU(
                hidden, hidden, kernel_size, stride,
                dilation=dilation, groups=hidden, activation=activation,
            ),
            ConvBNReLU(hidden, out_channels, 1, relu=False),
        ]  # fmt: skip
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return x + out if self.shortcut else out


def segmentation_head(
    in_channels: int, width: int, num_classes: int, dropout: float = 0.1, *, bias: bool = True
) -> nn.Sequential:
    """3x3 convolution with norm and ReLU, dropout, 1x1 classifier: (N, in, h, w) to (N, C, h, w).

    Main heads and auxiliary ones; `bias` is the classifier's.
    """
    return nn.Sequential(
        ConvBNReLU(in_channels, width),
        nn.Dropout2d(dropout),
        nn.Conv2d(width, num_classes, 1, bias=bias),
    )


def preactivated_head(in_channels: int, width: int, num_classes: int) -> nn.Sequential:
    """Norm, ReLU, 3x3 convolution with norm and ReLU, 1x1 classifier.

    (N, in_channels, h, w), any sign, to (N, num_classes, h, w). Main heads and auxiliary ones.
    """
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(in_channels),
            relu=nn.ReLU(inplace=True),
            conv=ConvBNReLU(in_channels, width),
            classifier=nn.Conv2d(width, num_classes, 1),
        )
    )


def channels_last(network: AnyModule) -> AnyModule:
    """Convolutions in the layout in which they train fastest, on a CPU and on CUDA; in place.

    Dilated ones in groups stay as they are: in this layout and in bfloat16, oneDNN leaves part of
    their weights' gradient unwritten (torch 2.13 on a CPU; on some only depthwise ones, on others
    from 8 groups on).
    """
    for module in network.modules():
        if isinstance(module, nn.ConvTranspose2d) or (
            isinstance(module, nn.Conv2d) and not _dilated_groups(module)
        ):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # untyped
        elif isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    return network


def _dilated_groups(conv: nn.Conv2d) -> bool:
    return conv.groups > 1 and max(conv.dilation) > 1


def fuse_batch_norm(module: AnyModule) -> AnyModule:
    """Folds every BatchNorm that follows a convolution in an `nn.Sequential` into it, in place.

    Transposed convolutions too; a module with a method `fold` is left to it. For inference only:
    the module must be in eval mode. Returns the module.
    """
    for child in list(module.modules()):
        if callable(fold := getattr(child, "fold", None)):
            fold()
        if not isinstance(child, nn.Sequential):
            continue
        names = list(child._modules)
        for first, second in pairwise(names):
            conv, norm = child._modules[first], child._modules[second]
            if isinstance(conv, nn.Conv2d | nn.ConvTranspose2d) and isinstance(
                norm, nn.BatchNorm2d
            ):
                turned = isinstance(conv, nn.ConvTranspose2d)
                child._modules[first] = torch.nn.utils.fusion.fuse_conv_bn_eval(conv, norm, turned)
                child._modules[second] = nn.Identity()
    return module
