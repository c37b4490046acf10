"""Training losses against cases worked by hand, against torch's own, and against definitions."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from rtseg.metrics import Confusion

torch = pytest.importorskip("torch")

from _loss_rows import IGNORE, case, logits_of, row  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from rtseg.losses import (  # noqa: E402
    CRITERIA,
    border_weights,
    boundary_aware_cross_entropy,
    boundary_bce,
    cross_entropy,
    dice_loss,
    distillation_loss,
    focal_loss,
    log_class_weights,
    lovasz_loss,
    ohem_cross_entropy,
)


def boundary_aware(logits: Any, labels: Any, **options: Any) -> Any:
    head = torch.full_like(logits[:, :1], 5.0)
    return boundary_aware_cross_entropy(logits, labels, head, **options)


def of_boundary_head(logits: Any, labels: Any, *, ignore_index: int, class_weights: Any) -> Any:
    return boundary_bce(logits[:, :1], labels, ignore_index=ignore_index)


def of_teacher(logits: Any, labels: Any, *, ignore_index: int, class_weights: Any) -> Any:
    teacher = torch.linspace(-2, 2, logits.numel()).reshape(logits.shape).to(logits)
    return distillation_loss(logits, teacher, labels != ignore_index, 2.0)


LOSSES: dict[str, Any] = {
    **CRITERIA,
    "boundary_aware": boundary_aware,
    "boundary_bce": of_boundary_head,
    "distillation": of_teacher,
}


def test_class_weights_by_hand() -> None:
    frequency = torch.tensor([0.9, 0.1])
    raw = [1 / math.log(1.1 + 0.9), 1 / math.log(1.1 + 0.1)]
    scale = 0.9 * raw[0] + 0.1 * raw[1]
    weights = log_class_weights(frequency, 1.1)
    assert weights.tolist() == pytest.approx([raw[0] / scale, raw[1] / scale], rel=1e-5)
    assert (weights * frequency).sum().item() == pytest.approx(1.0)


def test_an_absent_class_has_the_largest_finite_weight() -> None:
    weights = log_class_weights(torch.tensor([0.7, 0.3, 0.0]))
    assert torch.isfinite(weights).all()
    assert weights.argmax().item() == 2


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    logits, labels = case(torch.float64)
    weights = torch.tensor([0.5, 1.0, 2.0])

    def loss(values: Any) -> Any:
        return LOSSES[name](values, labels, ignore_index=IGNORE, class_weights=weights)

    assert torch.autograd.gradcheck(loss, logits)
    assert loss(logits).item() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_pixels_without_a_label_neither_cost_nor_teach(name: str) -> None:
    logits, labels = case()
    loss = LOSSES[name](logits, labels, ignore_index=IGNORE, class_weights=None)
    loss.backward()
    void = (labels == IGNORE)[:, None].expand_as(logits)
    assert logits.grad[void].abs().sum() == 0
    assert logits.grad[~void].abs().sum() > 0
    other = torch.where(void, -7.0 * logits.detach(), logits.detach())
    again = LOSSES[name](other, labels, ignore_index=IGNORE, class_weights=None)
    assert again.item() == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize("ignore_index", [IGNORE, -1, 0])
@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_labels_costs_nothing(name: str, ignore_index: int) -> None:
    logits, labels = case()
    labels = torch.full_like(labels, ignore_index)
    weights = torch.tensor([0.5, 1.0, 2.0])
    loss = LOSSES[name](logits, labels, ignore_index=ignore_index, class_weights=weights)
    loss.backward()
    assert loss.shape == ()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_computed_in_float32(name: str) -> None:
    logits, labels = case(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = LOSSES[name](logits, labels, ignore_index=IGNORE, class_weights=None)
    loss.backward()
    full = LOSSES[name](logits.detach().float(), labels, ignore_index=IGNORE, class_weights=None)
    assert loss.dtype == torch.float32
    # A single rounding to bfloat16 could cost 4e-3.
    assert loss.item() == pytest.approx(full.item(), rel=1e-5)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_certain_logits_stay_finite(name: str, sign: float) -> None:
    labels = row([0, 1, 2, 1])
    certain = F.one_hot(labels, 3).movedim(-1, 1).float() * sign * 1e4
    logits = certain.requires_grad_()
    loss = LOSSES[name](logits, labels, ignore_index=IGNORE, class_weights=None)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_sizes_that_differ_are_named(name: str) -> None:
    logits, labels = case()
    with pytest.raises(ValueError, match=r"logits: expected .*\(2, 4, 4\)"):
        LOSSES[name](logits, labels[:, :, :4], ignore_index=IGNORE, class_weights=None)


def test_cross_entropy_is_that_of_torch() -> None:
    logits, labels = case()
    weights = torch.tensor([0.5, 1.0, 2.0])
    for w in (None, weights):
        ours = cross_entropy(logits, labels, ignore_index=IGNORE, class_weights=w)
        theirs = F.cross_entropy(logits, labels, weight=w, ignore_index=IGNORE)
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    with pytest.raises(ValueError, match="class_weights: expected 3, got 2"):
        cross_entropy(logits, labels, ignore_index=IGNORE, class_weights=weights[:2])


def test_class_and_pixel_weights_multiply() -> None:
    logits = logits_of([[0.5, 0.5], [0.2, 0.8], [0.9, 0.1]])
    loss = cross_entropy(
        logits,
        row([0, 1, IGNORE]),
        ignore_index=IGNORE,
        class_weights=torch.tensor([1.0, 3.0]),
        pixel_weights=torch.tensor([[[4.0, 2.0, 9.0]]]),
    )
    # Weights 1*4 and 3*2; the third pixel has no label.
    assert loss.item() == pytest.approx((-4 * math.log(0.5) - 6 * math.log(0.8)) / 10, rel=1e-5)


def test_border_weights_by_hand() -> None:
    # Distance to the other class 3 2 1 | 1 2 3, to the own edge 2 1 0 | 0 1 2: d1 + d2 is
    # 5 3 1 | 1 3 5. The unlabelled pixel ends the row without a border.
    weights = border_weights(
        row([0, 0, 0, 1, 1, 1, IGNORE]),
        ignore_index=IGNORE,
        class_weights=torch.tensor([1.0, 2.0]),
        w0=10.0,
        sigma_px=2.0,
    )
    near, middle, far = (10 * math.exp(-(d**2) / 8) for d in (1, 3, 5))
    expected = [1 + far, 1 + middle, 1 + near, 2 + near, 2 + middle, 2 + far, 0]
    assert weights[0, 0].tolist() == pytest.approx(expected, rel=1e-5)
    assert weights.dtype == torch.float32


def test_border_weights_are_the_distances_of_the_definition() -> None:
    labels = torch.zeros(2, 9, 11, dtype=torch.long)
    labels[0, 5:, 3:] = 1
    labels[0, 2:4, 7:] = 2
    labels[0, 0, :2] = IGNORE
    weights = border_weights(labels, ignore_index=IGNORE)
    truth = labels[0].numpy()
    points = [(y, x) for y in range(9) for x in range(11) if truth[y, x] != IGNORE]

    def nearest(point: tuple[int, int], others: list[tuple[int, int]]) -> float:
        return min(math.dist(point, other) for other in others)

    across = {p: nearest(p, [q for q in points if truth[q] != truth[p]]) for p in points}
    edges = [p for p in points if across[p] == 1]
    for p in points:
        expected = 1 + 10 * math.exp(-((across[p] + nearest(p, edges)) ** 2) / 50)
        assert weights[0][p].item() == pytest.approx(expected, rel=1e-4)
    assert (weights[1] == 1).all()  # one class alone has no border


def test_border_cross_entropy_is_that_of_its_weights() -> None:
    logits, labels = case()
    classes = torch.tensor([0.5, 1.0, 2.0])
    weights = border_weights(labels, ignore_index=IGNORE, class_weights=classes)
    each = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    loss = CRITERIA["border_cross_entropy"](
        logits, labels, ignore_index=IGNORE, class_weights=classes
    )
    assert loss.item() == pytest.approx(((each * weights).sum() / weights.sum()).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("min_kept", "kept"),
    [
        (1, [0.1, 0.6]),  # the two below 0.7
        (3, [0.1, 0.6, 0.8]),  # and the hardest of the rest
        (99, [0.1, 0.6, 0.8, 0.9]),  # all that have a label
        (None, [0.1, 0.6]),  # one of the five pixels
    ],
)
def test_ohem_by_hand(min_kept: int | None, kept: list[float]) -> None:
    right = [0.9, 0.6, 0.8, 0.1, 0.001]
    logits = logits_of([[p, 1 - p] for p in right])
    loss = ohem_cross_entropy(
        logits, row([0, 0, 0, 0, IGNORE]), ignore_index=IGNORE, min_kept=min_kept
    )
    assert loss.item() == pytest.approx(-sum(map(math.log, kept)) / len(kept), rel=1e-4)


def test_ohem_weights_classes_but_does_not_pick_by_them() -> None:
    logits = logits_of([[0.6, 0.4], [0.3, 0.7], [0.9, 0.1]])
    loss = ohem_cross_entropy(
        logits,
        row([0, 0, 0]),
        ignore_index=IGNORE,
        class_weights=torch.tensor([0.01, 1.0]),
        min_kept=1,
    )
    # The weight of 0.01 divides out, and leaves the pixels with 0.6 and 0.3 hard.
    assert loss.item() == pytest.approx(-math.log(0.6 * 0.3) / 2, rel=1e-4)


def test_focal_by_hand() -> None:
    logits = logits_of([[0.9, 0.1], [0.75, 0.25]])
    labels = row([0, 1])
    loss = focal_loss(logits, labels, ignore_index=IGNORE)
    # Squared 1 - p: 0.01 and 0.5625.
    expected = -(0.01 * math.log(0.9) + 0.5625 * math.log(0.25)) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    alpha = torch.tensor([1.0, 3.0])
    loss = focal_loss(logits, labels, ignore_index=IGNORE, class_weights=alpha)
    expected = -(0.01 * math.log(0.9) + 3 * 0.5625 * math.log(0.25)) / 4
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_focal_without_gamma_is_cross_entropy() -> None:
    logits, labels = case()
    options: dict[str, Any] = {
        "ignore_index": IGNORE,
        "class_weights": torch.tensor([0.5, 1.0, 2.0]),
    }
    plain = cross_entropy(logits, labels, **options).item()
    assert focal_loss(logits, labels, gamma=0.0, **options).item() == pytest.approx(plain)


def test_focal_has_a_finite_slope_at_certainty() -> None:
    logits = torch.tensor([[[[200.0]], [[0.0]]]], requires_grad=True)  # p(label) rounds to 1
    focal_loss(logits, row([0]), ignore_index=IGNORE, gamma=0.5).backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(logits.grad).all()


def test_dice_by_hand() -> None:
    logits = logits_of([[0.8, 0.1, 0.1], [0.4, 0.5, 0.1], [0.6, 0.2, 0.2]])
    loss = dice_loss(logits, row([0, 1, 0]), ignore_index=IGNORE)
    # Class 0: 2 (0.8 + 0.6) / (0.64 + 0.16 + 0.36 + 2) = 2.8 / 3.16.
    # Class 1: 2 * 0.5 / (0.01 + 0.25 + 0.04 + 1) = 1 / 1.3. Class 2 is not in the labels.
    assert loss.item() == pytest.approx(1 - (2.8 / 3.16 + 1 / 1.3) / 2, rel=1e-5)


def test_lovasz_by_hand() -> None:
    logits = logits_of([[0.8, 0.2], [0.4, 0.6], [0.3, 0.7]])
    loss = lovasz_loss(logits, row([0, 0, 1]), ignore_index=IGNORE)
    # Class 0: errors 0.6 (missed), 0.3 (false), 0.2 (missed); 1 - IoU of the first one, two and
    # three of them 1 - 1/2, 1 - 1/3, 1 - 0/3: 0.6 / 2 + 0.3 / 6 + 0.2 / 3 = 0.41667.
    # Class 1: errors 0.6 (false), 0.3 (missed), 0.2 (false); 1 - 1/2, 1 - 0/2, 1 - 0/3:
    # 0.6 / 2 + 0.3 / 2 + 0 = 0.45.
    assert loss.item() == pytest.approx((0.3 + 0.05 + 0.2 / 3 + 0.45) / 2, rel=1e-5)


def test_lovasz_of_hard_predictions_is_the_jaccard_loss() -> None:
    """The extension takes the values of the set function at the corners of the cube."""
    truth = np.array([[0, 0, 1, 1, 2]], np.uint8)
    for guess in itertools.product(range(3), repeat=5):
        prediction = np.array([guess], np.uint8)
        confusion = Confusion(3)
        confusion.add(truth, prediction)
        # e^-200 is 0 in float32: the probabilities are exactly 0 and 1.
        logits = 200.0 * F.one_hot(torch.tensor([[guess]]), 3).movedim(-1, 1)
        loss = lovasz_loss(logits, torch.from_numpy(truth)[None].long(), ignore_index=IGNORE)
        assert loss.item() == pytest.approx(1 - confusion.iou().mean(), abs=1e-6)


def test_lovasz_is_the_extension_of_its_definition() -> None:
    """Definition 2 with sets: errors m by falling size, each times the step of 1 - IoU."""
    logits, labels = case()
    labels[labels == 2] = 1  # a class that the batch does not have
    valid = labels != IGNORE
    p = logits.detach().double().softmax(1).movedim(1, 0)[:, valid].numpy()
    truth = labels[valid].numpy()
    losses = []
    for c in (0, 1):
        positive = set(np.flatnonzero(truth == c).tolist())
        errors = np.abs((truth == c) - p[c])
        wrong: set[int] = set()
        before = total = 0.0
        for i in np.argsort(-errors).tolist():
            wrong.add(i)
            after = len(wrong) / len(positive | wrong)  # of Berman et al., eq. 6
            total += errors[i] * (after - before)
            before = after
        losses.append(total)
    loss = lovasz_loss(logits, labels, ignore_index=IGNORE)
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-5)
