"""Looking several times: what must not change, what must, and how windows lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from _fakes import TABLE, PaintEngine, frame_of
from numpy.typing import NDArray

from rtseg import native
from rtseg.artifact import Contract, ModelFile
from rtseg.engine import EngineInfo
from rtseg.errors import ConfigError, EngineError
from rtseg.frame import Frame, Labels
from rtseg.segmenter import Segmenter
from rtseg.tta import Augmentation, AugmentedSegmenter, resize_bilinear, window_starts

CONTRACT = Contract(
    "paint", TABLE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (8, 12), input_multiple=1, output_stride=1
)


class BlockEngine:
    """Logits at a quarter of the input, from its means and, if `lean` is set, their place."""

    info = EngineInfo("block", "test", "fp32", "1.0")

    def __init__(self, lean: float = 0.0) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.closed = 0
        self._lean = lean

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        self.shapes.append(images.shape[2:])
        n, _, h, w = images.shape
        means = images.reshape(n, 3, h // 4, 4, w // 4, 4).mean(axis=(3, 5))
        ramp = np.linspace(-self._lean, self._lean, w // 4, dtype=np.float32)
        means[:, 0] += ramp
        logits: NDArray[np.float32] = means * 8
        return logits

    def close(self) -> None:
        self.closed += 1


def segmenter(engine: PaintEngine | BlockEngine, contract: Contract = CONTRACT) -> Segmenter:
    return Segmenter(ModelFile(Path("paint.onnx"), contract, 3), engine)


def picture(height: int, width: int, seed: int = 0) -> Frame:
    """Noise with some structure, so that classes have areas."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    image = coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    return Frame(np.ascontiguousarray(image), 0, 0.0, 0.0)


def labels_of(looker: Segmenter | AugmentedSegmenter, frame: Frame) -> Labels:
    try:
        return looker.collect(looker.submit(frame)).labels
    finally:
        looker.close()


def augmented(
    engine: PaintEngine | BlockEngine, augmentation: Augmentation, contract: Contract = CONTRACT
) -> AugmentedSegmenter:
    return AugmentedSegmenter(segmenter(engine, contract), augmentation)


def test_one_look_is_the_plain_segmenter() -> None:
    frame = frame_of(3)
    plain = augmented(PaintEngine(), Augmentation())
    assert np.array_equal(labels_of(plain, frame), labels_of(segmenter(PaintEngine()), frame))
    assert plain.input_hw == (8, 12)
    assert plain.augmentation.is_plain


@pytest.mark.parametrize("align_corners", [False, True])
def test_flipping_a_symmetric_engine_changes_nothing(align_corners: bool) -> None:
    contract = replace(CONTRACT, input_multiple=4, output_stride=4, align_corners=align_corners)
    contract = replace(contract, input_hw=(64, 96))
    frame = picture(61, 90)
    plain = labels_of(segmenter(BlockEngine(), contract), frame)
    assert len(np.unique(plain)) == 3
    flipped = labels_of(augmented(BlockEngine(), Augmentation(flip=True), contract), frame)
    # Ties may fall otherwise: the logarithm of a softmax rounds.
    assert np.mean(plain == flipped) > 0.999


def test_flipping_takes_the_lean_out_of_an_engine() -> None:
    contract = replace(CONTRACT, input_multiple=4, output_stride=4, input_hw=(64, 96))
    frame = picture(64, 96)
    mirrored = Frame(np.ascontiguousarray(frame.image[:, ::-1]), 0, 0.0, 0.0)

    def both(augmentation: Augmentation) -> float:
        one = labels_of(augmented(BlockEngine(0.5), augmentation, contract), frame)
        other = labels_of(augmented(BlockEngine(0.5), augmentation, contract), mirrored)
        return float(np.mean(one == other[:, ::-1]))

    assert both(Augmentation()) < 0.9
    assert both(Augmentation(flip=True)) > 0.999


def test_scales_are_rounded_to_the_multiple_and_have_engines_of_their_own() -> None:
    contract = replace(CONTRACT, input_multiple=32, output_stride=4, input_hw=(64, 96))
    engines = [BlockEngine(), BlockEngine(), BlockEngine()]
    rest = iter(engines[1:])
    looker = AugmentedSegmenter(
        segmenter(engines[0], contract),
        Augmentation(flip=True, scales=(0.3, 1.0, 1.4)),
        open_another=lambda: next(rest),
    )
    assert labels_of(looker, picture(60, 90)).shape == (60, 90)
    assert looker.input_hw == (64, 96)
    assert [e.shapes for e in engines] == [[(96, 128)] * 2, [(64, 96)] * 2, [(32, 32)] * 2]
    assert [e.closed for e in engines] == [1, 1, 1]


def test_scales_of_a_plain_picture_agree() -> None:
    frame = frame_of(0, np.full((8, 12), 2, np.uint8))
    looker = augmented(PaintEngine(), Augmentation(flip=True, scales=(0.5, 1.0, 2.0)))
    assert (labels_of(looker, frame) == 2).all()


def test_the_given_size_is_that_of_scale_1() -> None:
    contract = replace(CONTRACT, input_multiple=4, output_stride=4)
    engine = BlockEngine()
    looker = AugmentedSegmenter(
        segmenter(engine, contract), Augmentation(scales=(0.5, 1.0)), size=(30, 40)
    )
    labels_of(looker, picture(60, 90))
    assert looker.input_hw == (32, 40)
    assert engine.shapes == [(32, 40), (16, 20)]


@pytest.mark.parametrize("window", [(4, 6), (3, 5), (8, 5), (100, 100), (1, 1)])
@pytest.mark.parametrize("flip", [False, True])
def test_windows_of_a_pointwise_engine_give_the_whole_image(
    window: tuple[int, int], flip: bool
) -> None:
    frame = frame_of(1)
    looker = augmented(PaintEngine(), Augmentation(flip=flip, window=window))
    assert np.array_equal(labels_of(looker, frame), labels_of(segmenter(PaintEngine()), frame))


def test_windows_see_the_image_at_its_own_scale() -> None:
    contract = replace(CONTRACT, input_multiple=4, output_stride=4, input_hw=(16, 16))
    engine = BlockEngine()
    looker = augmented(engine, Augmentation(window=(30, 40)), contract)
    assert labels_of(looker, picture(50, 100)).shape == (50, 100)
    assert looker.input_hw == (32, 40)
    assert engine.shapes == [(32, 40)] * 2 * 4  # a usual look would shrink it to 12x24


@pytest.mark.parametrize(("length", "window"), [(100, 30), (31, 30), (30, 30), (10, 30), (7, 1)])
def test_windows_cover_all_and_share_a_third(length: int, window: int) -> None:
    starts = window_starts(length, window)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - window)
    for one, next_one in pairwise(starts):
        assert 0 < next_one - one <= max(1, window * 2 / 3 + 0.5)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(5, 7), (10, 21), (3, 4), (1, 1)])
def test_resize_is_that_of_the_kernels(align_corners: bool, size: tuple[int, int]) -> None:
    values = np.random.default_rng(0).standard_normal((4, 5, 7)).astype(np.float32)
    resized = resize_bilinear(values, size, align_corners)
    assert resized.shape == (4, *size)
    expected = native.upsample_argmax(values, size, align_corners)
    assert np.array_equal(resized.argmax(axis=0), expected)


def test_logits_without_numbers_are_ignored() -> None:
    class Broken(PaintEngine):
        def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
            logits = super().infer(images)
            logits[:, :, 2, 3] = np.nan
            return logits

    labels = labels_of(augmented(Broken(), Augmentation(flip=True)), frame_of(1))
    assert (labels == 255).sum() == 2  # there, and where the mirrored one has it


def test_an_engine_of_other_classes_is_refused() -> None:
    class Wide(PaintEngine):
        def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.zeros((1, 7, 2, 2), np.float32)

    with pytest.raises(EngineError, match=r"expected logits \(1, 3, h, w\), got \(1, 7, 2, 2\)"):
        labels_of(augmented(Wide(), Augmentation(flip=True)), frame_of(1))


def test_a_failing_engine_ends_it(limited: Callable[[Callable[[], object]], object]) -> None:
    def fail(call: int) -> None:
        raise EngineError("no more")

    looker = augmented(PaintEngine(fail), Augmentation(flip=True))
    with pytest.raises(EngineError, match="no more"):
        limited(lambda: labels_of(looker, frame_of(1)))


@pytest.mark.parametrize(
    ("scales", "window", "size", "message"),
    [
        ("", None, "auto", "--scales '': expected numbers such as"),
        ("1,big", None, "auto", "--scales '1,big': expected numbers"),
        ("0", None, "auto", r"expected numbers in 0.25..4"),
        ("nan", None, "auto", r"expected numbers in 0.25..4"),
        ("1,1.0", None, "auto", "has one twice"),
        ("1", "huge", "auto", "--window 'huge': expected HEIGHTxWIDTH"),
        ("1", "auto", "auto", "--window 'auto': expected HEIGHTxWIDTH"),
        ("1", "0x64", "auto", "--window '0x64'"),
        ("1", "64x64", "64x64", "exclude one another"),
    ],
)
def test_bad_augmentation(scales: str, window: str | None, size: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Augmentation.parse(False, scales, window, size)


def test_augmentation_as_json() -> None:
    parsed = Augmentation.parse(True, "0.75, 1.0,1.25", "384x480", "auto")
    assert parsed.to_dict() == {"flip": True, "scales": [0.75, 1.0, 1.25], "window": (384, 480)}
    assert Augmentation.parse(False, "1.0", None, "384x480").is_plain
