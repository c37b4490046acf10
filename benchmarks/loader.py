"""Whether two cores of loading keep a training step busy: crops drawn per second against learned.

    python benchmarks/loader.py --data camvid:CamVid --json benchmarks/results/loader.json

Draws with everything switched on (scale, crop, flip, colour, blur, noise, class-uniform, pasting),
by one loader process's work on one core, and steps of the shipped networks' training (forward,
loss, backward, AdamW) on all cores, or on the GPU where there is one. A loader of two processes is
fast enough if twice the first figure exceeds the second.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import cv2
import torch
from _record import write_record

from rtseg.artifact import WEIGHTS_DIRECTORY
from rtseg.data import open_data
from rtseg.data.draws import Draws
from rtseg.data.transforms import Augmentation
from rtseg.models._catalogue import build
from rtseg.models.layers import channels_last
from rtseg.objective import segmentation_loss
from rtseg.recipe import Recipe, read_recipe


def draws_per_second(spec: str, crop_hw: tuple[int, int], crops: int) -> float:
    """Crops per second of CPU time, samples in the cache as after the first epoch."""
    cv2.setNumThreads(1)
    data = open_data(spec, "train")
    augmentation = Augmentation((384, 480), crop_hw)
    draws = Draws([data], (), augmentation, seed=0, class_uniform=0.5, paste=0.3)
    draws.draw(0)
    began = time.thread_time()
    for number in range(1, crops + 1):
        draws.draw(number)
    return crops / (time.thread_time() - began)


def learned_per_second(recipe: Recipe, seconds: float) -> float:
    """Crops per second that a training step of the recipe takes, bf16, the best of its steps."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network: Any = build(recipe.model.family, 11, recipe.model.options)
    network = channels_last(network.to(device)).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)
    batch, (height, width) = recipe.optimiser.batch, recipe.data.crop_hw
    images = torch.randn(batch, 3, height, width, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 11, (batch, height, width), device=device)
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until or best == float("inf"):
        began = time.perf_counter()
        with torch.autocast(device, torch.bfloat16):
            outputs = network(images)
        loss = segmentation_loss(outputs, labels, ignore_index=255)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        loss.item()  # waits for a GPU
        best = min(best, time.perf_counter() - began)
    return batch / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="PATH", help="also write the record to this file")
    parser.add_argument("--data", default="synth:seed=1,frames=40", help="NAME:DIR to draw from")
    parser.add_argument("--crops", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=10.0, help="of training, per network")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    for path in sorted(WEIGHTS_DIRECTORY.glob("*.toml")):
        recipe = read_recipe(path)
        drawn = draws_per_second(args.data, recipe.data.crop_hw, args.crops)
        learned = learned_per_second(recipe, args.seconds)
        results[recipe.name] = {
            "crop_hw": recipe.data.crop_hw,
            "drawn_per_second_and_core": round(drawn, 1),
            "learned_per_second": round(learned, 1),
            "ratio_with_two_cores": round(2 * drawn / learned, 2),
        }
        print(f"{recipe.name}: {drawn:.0f} crops/s drawn per core, {learned:.1f} learned")
    write_record(args.json, "loader", results, data=args.data)


if __name__ == "__main__":
    main()
