"""HRNet: branches of several resolutions side by side, which exchange what they see.

Wang et al., "Deep High-Resolution Representation Learning for Visual Recognition", TPAMI 2020:
section 3, figures 2 and 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rtseg.models.backbones.resnet import BasicBlock, Bottleneck
from rtseg.models.layers import ConvBNReLU
from rtseg.models.resampling import resize_like


class Exchange(nn.Module):
    """Residual blocks on each branch; then each becomes the sum of all, brought to its size.

    Figure 3: downwards by stride-2 convolutions, upwards by a 1x1 convolution and bilinear
    resizing. A list of maps (N, channels[i], H / 2**i, W / 2**i) to a list of the same shapes.
    """

    def __init__(self, channels: tuple[int, ...], blocks: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(c, c) for _ in range(blocks))) for c in channels
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_path(channels, source, target) for source in range(len(channels)))
            for target in range(len(channels))
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        fused = []
        for target, paths in enumerate(self.fuse_layers):
            assert isinstance(paths, nn.ModuleList)
            total = maps[target]
            for source, (path, x) in enumerate(zip(paths, maps, strict=True)):
                if source < target:
                    total = total + path(x)
                elif source > target:
                    total = total + resize_like(path(x), maps[target])
            fused.append(torch.relu(total))
        return fused


def _path(channels: tuple[int, ...], source: int, target: int) -> nn.Module:
    """From one branch towards another; upwards without the resizing."""
    if source == target:
        return nn.Identity()
    if source > target:
        return ConvBNReLU(channels[source], channels[target], 1, relu=False)
    steps = [
        ConvBNReLU(channels[source], channels[source], stride=2) for _ in range(target - source - 1)
    ]
    last = ConvBNReLU(channels[source], channels[target], stride=2, relu=False)
    return nn.Sequential(*steps, last)


class HRNet(nn.Module):
    """A stem, bottlenecks at stride 4, then two, three and four branches.

    Args:
        width: channels of the finest branch; each coarser one has twice as many.
        first: (channels inside, how many) of the bottlenecks in front of the branches.
        modules: how many exchanges there are with two, three and four branches.
        blocks: residual blocks per branch in front of each exchange.

    Forward: (N, 3, H, W) to four maps (N, channels[i], ceil(H / 2**(i + 2)), ...).
    """

    def __init__(
        self,
        width: int,
        *,
        first: tuple[int, int] = (64, 4),
        modules: tuple[int, int, int] = (1, 4, 3),
        blocks: int = 4,
    ) -> None:
        super().__init__()
        self.channels = tuple(width * 2**i for i in range(4))
        inside, depth = first
        wide = 4 * inside
        self.stem1 = ConvBNReLU(3, 64, stride=2)
        self.stem2 = ConvBNReLU(64, 64, stride=2)
        self.layer1 = nn.Sequential(
            Bottleneck(64, wide), *(Bottleneck(wide, wide) for _ in range(depth - 1))
        )
        previous: tuple[int, ...] = (wide,)
        transitions, stages = [], []
        for branches, count in zip((2, 3, 4), modules, strict=True):
            channels = self.channels[:branches]
            transitions.append(_transition(previous, channels))
            stages.append(nn.Sequential(*(Exchange(channels, blocks) for _ in range(count))))
            previous = channels
        self.transition1, self.transition2, self.transition3 = transitions
        self.stage2, self.stage3, self.stage4 = stages

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.layer1(self.stem2(self.stem1(x)))]
        for transition, stage in (
            (self.transition1, self.stage2),
            (self.transition2, self.stage3),
            (self.transition3, self.stage4),
        ):
            # A new branch grows from the coarsest.
            sources = [*maps, maps[-1]]
            maps = stage([step(x) for step, x in zip(transition, sources, strict=True)])
        return maps


def _transition(previous: tuple[int, ...], channels: tuple[int, ...]) -> nn.ModuleList:
    """Brings branches to their new widths, and adds one of half the size."""
    same = (
        nn.Identity() if before == after else ConvBNReLU(before, after)
        for before, after in zip(previous, channels, strict=False)
    )
    return nn.ModuleList([*same, ConvBNReLU(previous[-1], channels[-1], stride=2)])
