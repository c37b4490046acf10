"""What a training step minimises, against cases worked by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from _loss_rows import IGNORE, case  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from rtseg.losses import (  # noqa: E402
    boundary_aware_cross_entropy,
    boundary_bce,
    cross_entropy,
    dice_loss,
)
from rtseg.objective import labels_at, segmentation_loss  # noqa: E402


def test_labels_are_sampled_at_the_corners_of_aligned_upsampling() -> None:
    labels = torch.arange(35).reshape(1, 5, 7)
    # Rows 0, 2, 4 and columns 0, 3, 6.
    assert labels_at(labels, (3, 3)).tolist() == [[[0, 3, 6], [14, 17, 20], [28, 31, 34]]]
    assert torch.equal(labels_at(labels, (5, 7)), labels)


def test_labels_are_sampled_at_the_centres_of_unaligned_upsampling() -> None:
    labels = torch.arange(64).reshape(1, 8, 8)
    # Of 8 pixels at stride 4 the centres are 1.5 and 5.5: 2 and 6, to the even neighbour.
    assert labels_at(labels, (2, 2), align_corners=False).tolist() == [[[18, 22], [50, 54]]]
    assert torch.equal(labels_at(labels, (8, 8), align_corners=False), labels)
    # A ramp that is sampled and up-sampled again, the same way, stays where it was.
    ramp = torch.arange(96).expand(1, 96, 96)
    for aligned in (False, True):
        small = labels_at(ramp, (12, 12), aligned)[None].float()
        back = F.interpolate(small, size=(96, 96), mode="bilinear", align_corners=aligned)[0]
        assert (back - ramp)[..., 4:-4].abs().max() <= 0.6


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


def test_terms_choose_the_loss_of_the_main_output_alone() -> None:
    logits, _ = case()
    labels = torch.randint(0, 3, (2, 8, 10), generator=torch.Generator().manual_seed(5))
    options: dict[str, Any] = {"ignore_index": IGNORE, "auxiliary_weight": 0.25}
    loss = segmentation_loss([logits, logits], labels, terms={"dice": 2.0}, **options)
    twice = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=True)
    main = dice_loss(twice, labels, ignore_index=IGNORE)
    auxiliary = F.cross_entropy(logits, labels_at(labels, (4, 5)))
    assert loss.item() == pytest.approx((2 * main + 0.25 * auxiliary).item(), rel=1e-5)


def test_logits_of_full_size_are_not_enlarged() -> None:
    logits, labels = case()
    loss = segmentation_loss([logits], labels, ignore_index=IGNORE)
    expected = cross_entropy(logits, labels, ignore_index=IGNORE)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_boundary_head_is_taught_and_leads_the_main_output() -> None:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 3, (2, 8, 10), generator=generator)
    labels[0, :2] = IGNORE
    main = torch.randn(2, 3, 8, 10, generator=generator, requires_grad=True)
    head = (2 * torch.randn(2, 1, 8, 10, generator=generator)).requires_grad_()
    options: dict[str, Any] = {"ignore_index": IGNORE}
    loss = segmentation_loss([main, main, head], labels, boundary_weight=20.0, **options)
    semantic = cross_entropy(main, labels, **options)
    edges = boundary_bce(head, labels, **options)
    aware = boundary_aware_cross_entropy(main, labels, head, **options)
    assert loss.item() == pytest.approx((1.4 * semantic + 20 * edges + aware).item(), rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert head.grad is not None
    # Taught by the boundaries alone, not by the main output's loss.
    (alone,) = torch.autograd.grad(20 * edges, head)
    torch.testing.assert_close(head.grad, alone)


def test_a_boundary_head_may_have_another_stride() -> None:
    labels = torch.zeros(1, 32, 32, dtype=torch.long)
    labels[..., 16:] = 1
    outputs = [torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 8, 8)]
    loss = segmentation_loss(outputs, labels, ignore_index=IGNORE, boundary_weight=1.0)
    # At stride 2 two of sixteen columns are boundary: each side weighs by the other's share; an
    # undecided head is not above the threshold anywhere, so that no pixel costs twice.
    balance = 2 * (1 / 8) * (7 / 8)
    assert loss.item() == pytest.approx(math.log(2) * (1 + balance), rel=1e-5)
