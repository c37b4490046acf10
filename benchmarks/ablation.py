"""What each part of SFNet-Lite costs on the engine: variants of a shipped model, one part changed.

    python benchmarks/ablation.py --json benchmarks/results/ablation.json

Every variant is built with random weights, which cost what trained ones do ("the file itself", the
trained weights, shows how far that holds, and with it how far figures scatter), exported as
`rtseg export` does, and opened on the engine in the precision that `auto` picks: bf16 on a CPU that
has it, as with AMX. Variants take turns: each is opened, timed alone and closed, and compared with
the shipped architecture, opened and timed just before and after it. What a variant costs in mIoU
is not in the table: that takes a training run each.

TensorRT is not timed: it needs an NVIDIA GPU, and no record here was made on one. What is slow on
a CPU need not be slow there: depthwise convolutions and grid sampling above all want measuring
again before anything is concluded for a Jetson.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _record import write_record
from _runs import open_segmenter
from speed import SEED, export_untrained, in_child
from torch import Tensor, nn

from rtseg import plugins
from rtseg.artifact import Contract, load_model
from rtseg.config import parse_size
from rtseg.models.layers import ConvBNReLU
from rtseg.models.resampling import upsample_like
from rtseg.models.sfnet_lite import GatedDualFlowAlignment, SFNetLite

BASELINE, TRAINED = "as shipped", "the file itself"
Row = dict[str, Any]


class Gated(GatedDualFlowAlignment):
    """The gate without the two flows."""

    def __init__(self) -> None:
        super().__init__(channels=2)
        del self.reduce_low, self.reduce_high, self.flow

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        return self.mix(low, upsample_like(high, low))


class Summed(nn.Module):
    """Upsampled and added, as in a plain FPN."""

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        return low + upsample_like(high, low)


class DepthwiseSeparable(nn.Sequential):
    """`ConvBNReLU` of 3x3 as a depthwise and a 1x1 convolution (MobileNet, 2017, section 3.1)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, relu: bool = True):
        super().__init__(
            nn.Conv2d(
                in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False
            ),
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
            ConvBNReLU(in_channels, out_channels, kernel_size=1, relu=relu),
        )


def depthwise_stage(network: SFNetLite, stage: int) -> None:
    """Makes every 3x3 convolution of a backbone stage depthwise separable."""
    convs = {
        name: conv
        for name, conv in network.backbone.stages[stage].named_modules()
        if isinstance(conv, ConvBNReLU) and _conv(conv).kernel_size == (3, 3)
    }
    for name, conv in convs.items():
        old = _conv(conv)
        new = DepthwiseSeparable(
            old.in_channels, old.out_channels, int(old.stride[0]), relu=len(conv) == 3
        )
        network.set_submodule(f"backbone.stages.{stage}.{name}", new)


def depthwise_everywhere(network: SFNetLite) -> None:
    for stage in range(len(network.backbone.stages)):
        depthwise_stage(network, stage)


def no_pyramid(network: SFNetLite) -> None:
    """Puts a 1x1 convolution in the place of the pyramid pooling."""
    deepest, width = network.backbone.channels[-1], _conv(network.lateral_fine).out_channels
    network.set_submodule("context", ConvBNReLU(deepest, width, kernel_size=1))


def resnet_c_stem(network: SFNetLite) -> None:
    """Three 3x3 convolutions, one of them strided, and a max-pool (He et al., CVPR 2019)."""
    channels = _conv(network.backbone.stem[1]).out_channels
    stem = nn.Sequential(
        ConvBNReLU(3, channels, stride=2),
        ConvBNReLU(channels, channels),
        ConvBNReLU(channels, channels),
        nn.MaxPool2d(3, stride=2, padding=1),
    )
    network.set_submodule("backbone.stem", stem)


def head_of(make: Callable[[int, int], nn.Module]) -> Callable[[SFNetLite], None]:
    """A change that puts another convolution in the place of the head's 3x3 one."""

    def change(network: SFNetLite) -> None:
        old = _conv(network.head[0])
        network.set_submodule("head.0", make(old.in_channels, old.out_channels))

    return change


def _conv(block: nn.Module) -> nn.Conv2d:
    conv = next(block.children())
    assert isinstance(conv, nn.Conv2d)
    return conv


@dataclass(frozen=True)
class Variant:
    """A change of the shipped network: of its build options, or of the modules once built."""

    change: Callable[[SFNetLite], None] = lambda network: None
    options: Mapping[str, Any] = field(default_factory=dict)


VARIANTS: dict[str, Variant] = {
    "align at stride 8, head on the sum": Variant(options={"align_stride": 8}),
    "align at stride 4, head on both": Variant(options={"align_stride": 4}),
    "no warp: upsample + gate": Variant(lambda n: n.set_submodule("align", Gated())),
    "no warp, no gate: plain sum": Variant(lambda n: n.set_submodule("align", Summed())),
    "no PPM: 1x1 in its place": Variant(no_pyramid),
    "stem 16-32, two strided 3x3": Variant(options={"stem_channels": (16, 32)}),
    "stem 32-64, two strided 3x3": Variant(options={"stem_channels": (32, 64)}),
    "stem 64-64, two strided 3x3": Variant(options={"stem_channels": (64, 64)}),
    "stem 64-64-64, max-pool": Variant(resnet_c_stem, {"stem_channels": (64, 64)}),
    "stem 64 7x7, max-pool": Variant(options={"stem_channels": (64,)}),
    "head 1x1": Variant(head_of(lambda i, o: ConvBNReLU(i, o, kernel_size=1))),
    "head depthwise separable": Variant(head_of(DepthwiseSeparable)),
    "depthwise in stage 1": Variant(lambda n: depthwise_stage(n, 0)),
    "depthwise in all stages": Variant(depthwise_everywhere),
}


def export_variants(like: Contract, names: list[str], directory: Path) -> list[Row]:
    """Exports the shipped architecture and the named variants of it as 0.onnx, 1.onnx, ..."""
    module = plugins.load("rtseg.models", like.family)
    rows = []
    for i, name in enumerate([BASELINE, *names]):
        variant = VARIANTS.get(name, Variant())
        torch.manual_seed(SEED)
        network = module.build(len(like.classes), **{**like.options, **variant.options})
        variant.change(network)
        path = directory / f"{i}.onnx"
        facts = export_untrained(network, replace(like, name=name), path)
        rows.append({"variant": name, **facts, "path": str(path)})
    return rows


def is_change(variant: Variant, shipped: Mapping[str, Any]) -> bool:
    """False for options that are the shipped ones already."""
    own = {"align_stride": 4, **shipped}
    return not variant.options or any(
        not np.array_equal(own.get(key, ()), value) for key, value in variant.options.items()
    )


def engine_fps(path: str, size: str, args: argparse.Namespace) -> tuple[float, str]:
    """Frames per second of a model's engine alone, opened for this and closed; and the engine."""
    segmenter = open_segmenter(path, args.engine, args.precision, size)
    try:
        image = np.random.default_rng(SEED).integers(0, 256, (*parse_pair(size), 3), np.uint8)
        segmenter(image)
        info = segmenter.engine.info
        engine = f"{info.name} {info.precision}, {info.requests} at once"
        return segmenter.engine_fps(args.seconds) or 0.0, engine
    finally:
        segmenter.close()


def measure(rows: list[Row], size: str, args: argparse.Namespace) -> str:
    """Adds fps, ms and relative speed to every row, by medians over the rounds, and each round.

    The first row is the baseline. Gives the engine's name.
    """
    fps: list[list[float]] = [[] for _ in rows]
    ratios: list[list[float]] = [[] for _ in rows]
    for _ in range(args.rounds):
        before, engine = engine_fps(rows[0]["path"], size, args)
        fps[0].append(before)
        ratios[0].append(1.0)
        for i, row in enumerate(rows[1:], 1):
            own, _ = engine_fps(row["path"], size, args)
            after, _ = engine_fps(rows[0]["path"], size, args)
            fps[i].append(own)
            ratios[i].append(own * (1 / before + 1 / after) / 2)
            before = after
    for row, own_fps, relative in zip(rows, fps, ratios, strict=True):
        row["fps"] = round(statistics.median(own_fps), 2)
        row["relative"] = round(statistics.median(relative), 4)
        row["relative_range"] = [round(min(relative), 4), round(max(relative), 4)]
        row["rounds"] = [round(f, 2) for f in own_fps]
    for row in rows:  # from the ratios, which meet the same machine, as the rows' own FPS do not
        row["ms"] = round(1e3 / (rows[0]["fps"] * row["relative"]), 3)
    return engine


def parse_pair(size: str) -> tuple[int, int]:
    pair = parse_size(size)
    assert pair is not None
    return pair


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="PATH", help="also write the record to this file")
    parser.add_argument("--model", default="street-m", help="shipped name or .onnx file")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--size", metavar="HxW", help="input (default: the model's own)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.5, help="per variant and round")
    parser.add_argument(
        "--variant",
        action="append",
        choices=list(VARIANTS),
        help="beside the shipped one, as often as you like (default: all)",
    )
    args = parser.parse_args()
    model = load_model(args.model)
    if model.contract.family != "sfnet_lite":
        parser.error(f"{args.model} is of family {model.contract.family!r}, not sfnet_lite")
    size = args.size or "x".join(map(str, model.contract.input_hw))
    contract = replace(model.contract, input_hw=parse_pair(size))

    with tempfile.TemporaryDirectory() as directory:
        names = [
            name
            for name in args.variant or VARIANTS
            if is_change(VARIANTS[name], model.contract.options)
        ]
        rows = in_child(export_variants, contract, names, Path(directory))
        rows.insert(1, {**rows[0], "variant": TRAINED, "path": str(model.path)})
        engine = measure(rows, size, args)
    for row in rows:
        del row["path"]

    print(f"{args.model}, input {size}, {engine}: medians of {args.rounds} rounds in turns\n")
    print(f"{'variant':34} {'params':>8} {'GMACs':>6} {'FPS':>7} {'ms':>7} {'relative':>9}")
    for row in rows:
        low, high = row["relative_range"]
        print(
            f"{row['variant']:34} {row['params'] / 1e6:6.2f} M {row['gmacs']:6.2f} "
            f"{row['fps']:7.1f} {row['ms']:7.2f} {row['relative']:9.3f}   {low:.2f} to {high:.2f}"
        )
    write_record(args.json, "ablation", rows, model=args.model, size=size, engine=engine)


if __name__ == "__main__":
    main()
