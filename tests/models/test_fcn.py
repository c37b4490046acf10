"""FCN: up-sampling that starts as bilinear, and scores of skips that start at zero."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from rtseg.errors import ConfigError  # noqa: E402
from rtseg.models import fcn  # noqa: E402


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 4)])
def test_up_sampling_starts_as_bilinear(size: tuple[int, int]) -> None:
    scores = torch.randn(2, 3, *size)
    with torch.inference_mode():
        got = fcn.TwofoldUpsampling(3)(scores)
    expected = F.interpolate(scores, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("skips", [0, 1, 2])
def test_skips_add_nothing_at_first(skips: int) -> None:
    network = fcn.build(3, backbone="vgg16", skips=skips, width=8).eval()
    assert isinstance(network, fcn.FCN)
    images = torch.randn(1, 3, 45, 70)  # 2 x 3 cells of stride 32, not all of them full
    with torch.inference_mode():
        expected = network.score(network.fully(network.backbone(images)[-1]))
        for i, skip in enumerate(network.skips):
            assert isinstance(skip, torch.nn.Conv2d)
            assert skip.bias is not None
            skip.bias.zero_()
            height, width = (-(-side // (16 >> i)) for side in (45, 70))
            expected = F.interpolate(expected, scale_factor=2, mode="bilinear")
            expected = expected[..., :height, :width]
        got = network(images)
    assert network.output_stride == 32 >> skips
    torch.testing.assert_close(got, expected)


def test_unknown_backbones_and_skips_are_refused() -> None:
    with pytest.raises(ConfigError, match="alexnet, vgg16 or resnet50, not vgg19"):
        fcn.build(3, backbone="vgg19")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="vgg16 only"):
        fcn.build(3, backbone="alexnet", skips=1)
