"""The renderer, by properties: what each effect may and may not change."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from rtseg._hud import SHOW_SHARE, Legend, printable, text_mask
from rtseg.errors import ConfigError
from rtseg.frame import ClassTable, Frame, ImageBGR, LabelMap, Labels
from rtseg.overlay import EFFECTS, Effect, Renderer

CLASSES = ClassTable(
    ("Road", "Car", "Pedestrian", "Sky"),
    ((128, 64, 128), (64, 0, 128), (220, 20, 60), (70, 130, 180)),
    ignore_index=255,
)
EVERY_EFFECT = ("overlay", "mask", "contour", "blur:Pedestrian", "blur:car+Sky", "side-by-side")
SIZES_HW = ((1, 1), (1, 7), (2, 3), (5, 4), (37, 53), (129, 255), (241, 427))


def picture_of(
    effect: str, image: ImageBGR, labels: Labels, classes: ClassTable = CLASSES, **kwargs: object
) -> ImageBGR:
    renderer = Renderer(classes, effect, hud=False, **kwargs)  # type: ignore[arg-type]
    return renderer.render(Frame(image, 0, 0.0, 0.0), LabelMap(labels, classes))


def noise(height: int, width: int, seed: int = 0) -> ImageBGR:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def quadrants(height: int, width: int) -> Labels:
    rows = (np.arange(height) >= height // 2).astype(np.uint8)[:, None]
    columns = (np.arange(width) >= width // 2).astype(np.uint8)[None]
    return 2 * rows + columns


@pytest.mark.parametrize("size_hw", SIZES_HW)
@pytest.mark.parametrize("effect", EVERY_EFFECT)
def test_any_size_gives_a_picture_and_leaves_its_inputs_alone(
    effect: str, size_hw: tuple[int, int]
) -> None:
    image, labels = noise(*size_hw), quadrants(*size_hw)
    image.flags.writeable = labels.flags.writeable = False
    image_before, labels_before = image.copy(), labels.copy()
    frame, result = Frame(image, 0, 0.0, 0.0), LabelMap(labels, CLASSES)
    renderer = Renderer(CLASSES, effect, title="street-m")
    for _ in range(2):
        picture = renderer.render(frame, result, fps=25.0, mask_age_ms=12.0)
        sides = 2 if effect == "side-by-side" else 1
        assert picture.shape == (size_hw[0], sides * size_hw[1], 3)
        assert picture.dtype == np.uint8
        assert picture.flags.c_contiguous
        assert not np.shares_memory(picture, image)
    np.testing.assert_array_equal(image, image_before)
    np.testing.assert_array_equal(labels, labels_before)


def test_one_renderer_follows_a_change_of_size() -> None:
    renderer = Renderer(CLASSES)
    for size_hw in ((270, 480), (33, 20), (270, 480)):
        frame = Frame(noise(*size_hw), 0, 0.0, 0.0)
        assert renderer.render(frame, LabelMap(quadrants(*size_hw), CLASSES)).shape[:2] == size_hw


def test_opacity_zero_is_the_image_and_one_is_the_mask() -> None:
    image, labels = noise(60, 81), quadrants(60, 81)
    np.testing.assert_array_equal(picture_of("overlay", image, labels, opacity=0.0), image)
    mask = picture_of("mask", image, labels)
    np.testing.assert_array_equal(mask, CLASSES.lut_bgr()[labels])
    np.testing.assert_array_equal(picture_of("overlay", image, labels, opacity=1.0), mask)


def test_overlay_lies_between_image_and_colour() -> None:
    image, labels = noise(60, 81), quadrants(60, 81)
    wanted = 0.7 * image + 0.3 * CLASSES.lut_bgr()[labels]
    picture = picture_of("overlay", image, labels, opacity=0.3)
    assert np.abs(picture - wanted).max() <= 1  # blend rounds, ties may go either way


@pytest.mark.parametrize("ignore_index", [255, 4, 1])
@pytest.mark.parametrize("opacity", [0.5, 1.0])
def test_pixels_without_a_class_keep_the_image(ignore_index: int, opacity: float) -> None:
    classes = ClassTable(CLASSES.names, CLASSES.palette_rgb, ignore_index)
    image, labels = noise(40, 40), quadrants(40, 40)
    labels[:5], labels[5:9] = ignore_index, 200
    picture = picture_of("overlay", image, labels, classes, opacity=opacity)
    unlabelled = (labels >= len(classes)) | (labels == ignore_index)
    np.testing.assert_array_equal(picture[unlabelled], image[unlabelled])
    assert (picture[~unlabelled] != image[~unlabelled]).any(axis=1).mean() > 0.9
    assert not picture_of("mask", image, labels, classes)[unlabelled].any()


def test_contour_draws_class_colours_at_borders_only() -> None:
    image, labels = np.full((100, 120, 3), 200, np.uint8), np.zeros((100, 120), np.uint8)
    labels[30:70, 40:80] = 2
    picture = picture_of("contour", image, labels)
    inside = np.pad(np.ones((40, 40), np.uint8), ((30, 30), (40, 40)))
    far = (cv2.distanceTransform(inside, cv2.DIST_C, 3) > 4) | (
        cv2.distanceTransform(1 - inside, cv2.DIST_C, 3) > 4
    )
    np.testing.assert_array_equal(picture[far], image[far])
    lut = CLASSES.lut_bgr()
    np.testing.assert_array_equal(picture[30, 45:75], np.broadcast_to(lut[2], (30, 3)))
    np.testing.assert_array_equal(picture[29, 45:75], np.broadcast_to(lut[0], (30, 3)))
    assert (picture[28, 45:75] < 40).all()  # the outline, dark on both outsides
    assert (picture[31, 45:75] < 40).all()


def test_contour_of_a_single_class_is_the_image() -> None:
    image = noise(50, 50)
    labels = np.full((50, 50), 3, np.uint8)
    np.testing.assert_array_equal(picture_of("contour", image, labels), image)


def test_blur_keeps_the_class_and_smooths_the_rest() -> None:
    image, labels = noise(240, 320), np.zeros((240, 320), np.uint8)
    labels[60:180, 100:220] = 2
    picture = picture_of("blur:Pedestrian", image, labels)
    np.testing.assert_array_equal(picture[64:176, 104:216], image[64:176, 104:216])
    rest = picture[:, :90].astype(float)
    assert rest.std() < 0.1 * image[:, :90].std()
    assert abs(rest.mean() - image[:, :90].mean()) < 3


def test_blur_without_the_class_or_with_nothing_else() -> None:
    image = noise(120, 160)
    absent = picture_of("blur:Car", image, np.zeros((120, 160), np.uint8))
    assert absent.std() < 0.2 * image.std()
    everywhere = picture_of("blur:Car", image, np.ones((120, 160), np.uint8))
    np.testing.assert_array_equal(everywhere, image)


def test_blur_leaves_no_halo_of_the_kept_class() -> None:
    image, labels = np.full((240, 320, 3), 40, np.uint8), np.zeros((240, 320), np.uint8)
    image[80:160, 120:200], labels[80:160, 120:200] = 255, 2
    picture = picture_of("blur:Pedestrian", image, labels)
    beside = picture[80:160, 90:116]
    assert beside.max() <= 50, "the white subject must not glow into the dark around it"


def test_side_by_side_shows_the_image_then_the_overlay() -> None:
    image, labels = noise(33, 47), quadrants(33, 47)
    picture = picture_of("side-by-side", image, labels, opacity=0.4)
    assert picture.shape == (33, 94, 3)
    np.testing.assert_array_equal(picture[:, :47], image)
    np.testing.assert_array_equal(
        picture[:, 47:], picture_of("overlay", image, labels, opacity=0.4)
    )


def test_effects_are_parsed() -> None:
    assert Effect.parse(" Overlay ", CLASSES) == Effect("overlay")
    assert Effect.parse("blur:sky+car+Sky", CLASSES) == Effect("blur", (1, 3))
    assert {Effect.parse(e, CLASSES).kind for e in EVERY_EFFECT} == set(EFFECTS)


@pytest.mark.parametrize(
    ("effect", "message"),
    [
        ("sepia", "overlay, mask, contour, blur, side-by-side"),
        ("", "overlay, mask, contour, blur, side-by-side"),
        ("blur", "Road, Car, Pedestrian, Sky"),
        ("blur:", "Road, Car, Pedestrian, Sky"),
        ("blur:Car+Unicorn", "unknown class 'Unicorn'.*Road, Car, Pedestrian, Sky"),
        ("mask:Car", "only blur takes classes"),
    ],
)
def test_bad_effects_say_what_is_allowed(effect: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Renderer(CLASSES, effect)


@pytest.mark.parametrize("opacity", [-0.01, 1.01, float("nan")])
def test_opacity_must_be_a_share(opacity: float) -> None:
    with pytest.raises(ConfigError, match="expected 0 to 1"):
        Renderer(CLASSES, opacity=opacity)


def test_labels_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(4, 5\) like the frame, got \(5, 4\)"):
        picture_of("overlay", noise(4, 5), np.zeros((5, 4), np.uint8))


@pytest.mark.parametrize("size_hw", [(240, 426), (360, 480), (640, 360), (1080, 1920)])
def test_hud_covers_corners_only(size_hw: tuple[int, int]) -> None:
    image, labels = noise(*size_hw), quadrants(*size_hw)
    frame, result = Frame(image, 0, 0.0, 0.0), LabelMap(labels, CLASSES)
    bare = Renderer(CLASSES, hud=False).render(frame, result)
    picture = Renderer(CLASSES, title="street-m").render(frame, result, fps=9.0, mask_age_ms=20.0)
    changed = (picture != bare).any(axis=2)
    assert 0.005 < changed.mean() < 0.2
    height, width = size_hw
    assert not changed[height * 6 // 10 :].any()
    assert not changed[height // 4 :, : width // 4].any()


def test_hud_hides_on_small_pictures_and_without_anything_to_say() -> None:
    for size_hw in ((120, 160), (100, 900)):
        image, labels = noise(*size_hw), quadrants(*size_hw)
        frame, result = Frame(image, 0, 0.0, 0.0), LabelMap(labels, CLASSES)
        bare = Renderer(CLASSES, hud=False).render(frame, result)
        np.testing.assert_array_equal(Renderer(CLASSES).render(frame, result, fps=9.0), bare)
    image, labels = noise(360, 480), np.full((360, 480), 255, np.uint8)
    picture = Renderer(CLASSES).render(Frame(image, 0, 0.0, 0.0), LabelMap(labels, CLASSES))
    np.testing.assert_array_equal(picture, image)


def test_hud_on_a_narrow_picture_keeps_the_figures() -> None:
    """Rather than a line that does not fit: the title goes, the mask age stays."""
    image, labels = noise(320, 240), quadrants(320, 240)
    frame, result = Frame(image, 0, 0.0, 0.0), LabelMap(labels, CLASSES)
    bare = Renderer(CLASSES, hud=False).render(frame, result).copy()
    drawn = {}
    for title in ("street-m openvino bf16", None):
        renderer = Renderer(CLASSES, title=title)
        drawn[title] = renderer.render(frame, result, fps=8.5, mask_age_ms=134.0).copy()
    top = np.s_[:24, :120]
    assert (drawn[None][top] != bare[top]).any()
    np.testing.assert_array_equal(drawn["street-m openvino bf16"], drawn[None])


def test_hud_numbers_change_four_times_a_second_at_most() -> None:
    image, labels = noise(360, 480), quadrants(360, 480)
    renderer, seen = Renderer(CLASSES), set()
    for index in range(50):
        frame = Frame(image, index, index / 50, 0.0)
        picture = renderer.render(frame, LabelMap(labels, CLASSES), fps=20.0 + index)
        seen.add(picture.tobytes())
    assert 2 <= len(seen) <= 5


def test_any_name_and_title_can_be_drawn() -> None:
    names = ("Straße 道路", "fußgänger", "", "a name that goes on and on for no good reason")
    classes = ClassTable(names, CLASSES.palette_rgb)
    frame = Frame(noise(360, 480), 0, 0.0, 0.0)
    renderer = Renderer(classes, title="modèle · 模型\n")
    renderer.render(frame, LabelMap(quadrants(360, 480), classes), fps=1.0, mask_age_ms=5000.0)
    assert printable("modèle · x") == "modele ? x"


def test_many_classes_are_cut_to_what_fits() -> None:
    rng = np.random.default_rng(0)
    names = tuple(f"class {i}" for i in range(150))
    colours = tuple((int(r), int(g), int(b)) for r, g, b in rng.integers(0, 256, (150, 3)))
    classes = ClassTable(names, colours)
    labels = rng.integers(0, 150, (360, 480), np.uint8)
    frame, result = Frame(noise(360, 480), 0, 0.0, 0.0), LabelMap(labels, classes)
    bare = Renderer(classes, hud=False).render(frame, result)
    changed = (Renderer(classes).render(frame, result) != bare).any(axis=2)
    assert changed.any()
    assert not changed[360 * 6 // 10 :].any()


def test_legend_order_is_by_share_and_does_not_flicker() -> None:
    legend = Legend(CLASSES)
    legend.update(np.array([0.30, 0.305, 0.0, 0.395]), 0.0)
    assert legend.rows([]) == [3, 1, 0]
    for step in range(1, 20):  # two classes trade places by less than the hysteresis
        jitter = 0.004 * (-1) ** step
        legend.update(np.array([0.30 + jitter, 0.30 - jitter, 0.0, 0.4]), step / 25)
        assert legend.rows([3, 1, 0]) == [3, 1, 0]
    for step in range(20, 100):
        legend.update(np.array([0.45, 0.15, 0.0, 0.4]), step / 25)
    assert legend.rows([3, 1, 0]) == [0, 3, 1]


def test_legend_starts_afresh_after_a_cut_or_a_jump() -> None:
    for shares, pts_seconds in (([0.0, 0.0, 1.0, 0.0], 0.04), ([0.9, 0.1, 0.0, 0.0], 60.0)):
        legend = Legend(CLASSES)
        legend.update(np.array([1.0, 0.0, 0.0, 0.0]), 0.0)
        legend.update(np.array(shares), pts_seconds)
        assert [legend.percent(i) for i in legend.rows([])] == [
            f"{100 * s:.0f}%" for s in sorted(shares, reverse=True) if s >= SHOW_SHARE
        ]


def test_text_has_the_asked_for_size_on_any_opencv() -> None:
    for cap_px in (7, 10, 17, 30):
        mask = text_mask("HE", cap_px)
        rows = np.flatnonzero(mask.max(axis=1) > 0.5)
        assert mask.shape[0] == 2 * cap_px
        assert abs(rows[-1] - rows[0] + 1 - cap_px) <= 1
        assert abs(rows[-1] + 1 - cap_px * 3 // 2) <= 1
