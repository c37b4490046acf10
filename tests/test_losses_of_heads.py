"""Losses of boundary heads and teachers, class weights, and the terms that a recipe chooses."""

from __future__ import annotations

import math

import pytest

from rtseg.errors import ConfigError

torch = pytest.importorskip("torch")

from _loss_rows import IGNORE, case, logits_of, row  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from rtseg.losses import (  # noqa: E402
    boundary_aware_cross_entropy,
    boundary_bce,
    boundary_targets,
    check_terms,
    criterion,
    cross_entropy,
    distillation_loss,
    lovasz_loss,
    median_class_weights,
)


def test_boundaries_by_hand() -> None:
    labels = torch.tensor([[[0, 0, 0, 1, 1], [0, 0, 0, 1, 1], [2, 0, IGNORE, IGNORE, 1]]])
    found = boundary_targets(labels, ignore_index=IGNORE)
    assert found.int().tolist() == [[[0, 0, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]]
    wide = boundary_targets(labels, ignore_index=IGNORE, radius_px=2)
    assert wide.int().tolist() == [[[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 0, 0, 1]]]


def test_boundary_bce_by_hand() -> None:
    # Of five labelled pixels, 1 and 2 are the boundary.
    labels = row([0, 0, 1, 1, 1, IGNORE])
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.0, 9.0])[None, None, None]
    loss = boundary_bce(logits, labels, ignore_index=IGNORE)
    # A boundary pixel weighs 3/5, the others 2/5; -log sigmoid(x) = log(1 + e^-x).
    boundary = math.log1p(math.exp(-1)) + math.log1p(math.exp(1))
    others = 2 * math.log(2) + math.log1p(math.exp(2))
    assert loss.item() == pytest.approx((0.6 * boundary + 0.4 * others) / 5, rel=1e-5)
    with pytest.raises(ValueError, match=r"expected \(N, 1, h, w\)"):
        boundary_bce(logits.expand(1, 2, 1, 6), labels, ignore_index=IGNORE)


def test_boundary_awareness_by_hand() -> None:
    logits = logits_of([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.5, 0.5]])
    # sigmoid(1.3) = 0.786, sigmoid(1.5) = 0.818: 1 and 2 are above 0.8, and 3 has no label.
    head = torch.tensor([1.3, 1.5, 4.0, 4.0])[None, None, None].requires_grad_()
    loss = boundary_aware_cross_entropy(
        logits.requires_grad_(), row([0, 0, 1, IGNORE]), head, ignore_index=IGNORE
    )
    assert loss.item() == pytest.approx(-math.log(0.6 * 0.7) / 2, rel=1e-4)
    loss.backward()  # type: ignore[no-untyped-call]
    assert head.grad is None


def test_distillation_by_hand() -> None:
    # At temperature 2 the logits 2 log(p) have the softmax p.
    student, teacher = 2 * logits_of([[0.5, 0.5]]), 2 * logits_of([[0.8, 0.2]])
    divergence = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    loss = distillation_loss(student, teacher, temperature=2.0)
    assert loss.item() == pytest.approx(4 * divergence, rel=1e-5)
    assert distillation_loss(teacher, teacher, temperature=2.0).item() == pytest.approx(0, abs=1e-6)


def test_distillation_is_the_divergence_of_torch() -> None:
    student, labels = case()
    teacher = torch.randn(student.shape, generator=torch.Generator().manual_seed(1))
    mask = labels != IGNORE
    each = F.kl_div((student / 3).log_softmax(1), (teacher / 3).softmax(1), reduction="none").sum(1)
    loss = distillation_loss(student, teacher, mask, 3.0)
    assert loss.item() == pytest.approx(9 * each[mask].mean().item(), rel=1e-5)
    with pytest.raises(ValueError, match="mask: expected bool"):
        distillation_loss(student, teacher, labels)
    with pytest.raises(ValueError, match="teacher: expected"):
        distillation_loss(student, teacher[:, :2])


def test_distillation_from_a_hot_softmax_matches_logits() -> None:
    """Hinton et al., section 2.1: the gradient tends to (z - v) / C for logits of mean 0."""
    student = torch.tensor([1.0, 0.5, -1.5])[None, :, None, None].requires_grad_()
    teacher = torch.tensor([-1.0, 2.0, -1.0])[None, :, None, None].requires_grad_()
    distillation_loss(student, teacher, temperature=1e3).backward()  # type: ignore[no-untyped-call]
    expected = (student - teacher).detach().flatten() / 3
    assert student.grad.flatten().tolist() == pytest.approx(expected.tolist(), rel=1e-2)
    assert teacher.grad is None


def test_a_teacher_of_another_size_is_resized() -> None:
    student = torch.zeros(1, 2, 1, 4)
    teacher = torch.tensor([0.0, 3.0])[None, None, None].expand(1, 2, 2, 2).clone()
    teacher[:, 1] = 0
    resized = torch.tensor([0.0, 1.0, 2.0, 3.0])  # of class 0, with the corners aligned
    same_size = torch.stack([resized, torch.zeros(4)])[None, :, None]
    expected = distillation_loss(student, same_size).item()
    assert expected > 0
    assert distillation_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_median_class_weights_by_hand() -> None:
    counts = torch.tensor([[90, 10, 0, 0], [50, 10, 40, 0], [100, 0, 0, 0]])
    # Class 0: 240 of 300; class 1: 20 of 200; class 2: 40 of 100. Of 0.8, 0.1, 0.4 the median is
    # 0.4. Class 3 never occurs.
    assert median_class_weights(counts).tolist() == pytest.approx([0.5, 4.0, 1.0, 4.0])
    # Of an even number the mean of the middle two: 0.8 and 0.2 have 0.5.
    assert median_class_weights(torch.tensor([[80, 20]])).tolist() == pytest.approx([0.625, 2.5])
    assert median_class_weights(torch.zeros(2, 3)).tolist() == [1.0, 1.0, 1.0]


def test_a_criterion_is_the_weighted_sum_of_its_terms() -> None:
    logits, labels = case()
    weights = torch.tensor([0.5, 1.0, 2.0])
    loss = criterion({"cross_entropy": 1, "lovasz": 0.5}, logits, labels, IGNORE, weights)
    first = cross_entropy(logits, labels, ignore_index=IGNORE, class_weights=weights)
    second = lovasz_loss(logits, labels, ignore_index=IGNORE)
    assert loss.item() == pytest.approx((first + 0.5 * second).item(), rel=1e-6)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({}, "no terms: choose from cross_entropy"),
        ({"hinge": 1.0}, "unknown loss 'hinge': choose from cross_entropy"),
        ({"dice": 0.0}, "dice: its weight must be a positive number, got 0.0"),
        ({"dice": math.nan}, "positive number"),
        ({"dice": math.inf}, "positive number"),
        ({"dice": True}, "positive number"),
        ({"dice": "1"}, "positive number"),
    ],
)
def test_terms_that_cannot_be_used_are_named(terms: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_terms(terms)
