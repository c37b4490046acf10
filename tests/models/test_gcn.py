"""GCN: the cost of a global convolution as published, and logits of the input's own size."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from rtseg.models import gcn  # noqa: E402


@pytest.mark.parametrize(("k", "thousands"), [(3, 260), (5, 434), (7, 608), (9, 782)])
def test_a_global_convolution_has_the_published_weights(k: int, thousands: int) -> None:
    # Peng et al., table 2: from ResNet's 2048 channels to 21 classes, biases not counted
    block = gcn.GlobalConvolution(2048, 21, k)
    assert sum(p.numel() for p in block.parameters() if p.ndim == 4) // 1000 == thousands


def test_a_global_convolution_reaches_a_whole_window() -> None:
    block = gcn.GlobalConvolution(1, 1, 7)
    image = torch.zeros(1, 1, 15, 15, requires_grad=True)
    block(image)[0, 0, 7, 7].backward()
    assert image.grad is not None
    reached = image.grad[0, 0] != 0
    assert reached.sum() == 49
    assert reached[4:11, 4:11].all()


@pytest.mark.parametrize("size", [(32, 64), (45, 33), (65, 97)])
def test_the_logits_have_the_size_of_the_image(size: tuple[int, int]) -> None:
    network = gcn.build(3, depth=18, kernel_size=7).eval()
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, *size)).shape == (1, 3, *size)
