"""Training losses against cases worked by hand."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from rtseg.losses import labels_at, log_class_weights, segmentation_loss  # noqa: E402

IGNORE = 255


def test_labels_are_sampled_at_the_corners_of_aligned_upsampling() -> None:
    labels = torch.arange(35).reshape(1, 5, 7)
    # Rows 0, 2, 4 and columns 0, 3, 6.
    assert labels_at(labels, (3, 3)).tolist() == [[[0, 3, 6], [14, 17, 20], [28, 31, 34]]]
    assert torch.equal(labels_at(labels, (5, 7)), labels)


def test_uniform_logits_cost_the_log_of_the_classes() -> None:
    logits = torch.zeros(2, 4, 3, 5)
    labels = torch.randint(0, 4, (2, 12, 20))
    loss = segmentation_loss([logits], labels, ignore_index=IGNORE)
    assert loss.item() == pytest.approx(math.log(4), rel=1e-5)


def test_auxiliary_outputs_are_weighted() -> None:
    logits = torch.zeros(1, 4, 3, 5)
    labels = torch.zeros(1, 12, 20, dtype=torch.long)
    loss = segmentation_loss(
        [logits, logits, logits], labels, ignore_index=IGNORE, auxiliary_weight=0.25
    )
    assert loss.item() == pytest.approx(1.5 * math.log(4), rel=1e-5)


def test_two_pixels_by_hand() -> None:
    # p(right) = e / (e + 1) everywhere; class 1 counts three times as much as class 0.
    logits = torch.zeros(1, 2, 2, 2)
    logits[:, 0] = 1.0
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels[:, :, 2:] = 1
    right, wrong = math.log(1 + math.exp(-1)), 1 + math.log(1 + math.exp(-1))
    equal = segmentation_loss([logits], labels, ignore_index=IGNORE)
    assert equal.item() == pytest.approx((right + wrong) / 2, rel=1e-5)
    weighted = segmentation_loss(
        [logits], labels, ignore_index=IGNORE, class_weights=torch.tensor([1.0, 3.0])
    )
    assert weighted.item() == pytest.approx((right + 3 * wrong) / 4, rel=1e-5)


def test_ignored_pixels_cost_nothing_and_teach_nothing() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    labels = torch.full((1, 8, 8), IGNORE)
    labels[:, :4] = 1
    loss = segmentation_loss([logits], labels, ignore_index=IGNORE)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad[:, :, 0].abs().sum() > 0
    assert logits.grad[:, :, 3].abs().sum() == 0


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
