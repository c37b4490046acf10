"""U-Net without padding: the paper's sizes, its values, and the mirrored border."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from rtseg.errors import ConfigError  # noqa: E402
from rtseg.models import unet  # noqa: E402

NARROW = (4, 6, 8, 10, 12)
BORDER = 92


@pytest.fixture
def network() -> unet.UNet:
    torch.manual_seed(0)
    built = unet.build(5, channels=NARROW, padding="valid")
    assert isinstance(built, unet.UNet)
    return built.eval()


def unpadded(network: unet.UNet, tile: Tensor) -> Tensor:
    """Figure 1 of the paper: a tile to the logits of its middle."""
    x, skips = tile, []
    for encoder in network.encoders[:-1]:
        skips.append(encoder(x))
        assert not any(side % 2 for side in skips[-1].shape[-2:]), "pooling cuts nothing off"
        x = torch.nn.functional.max_pool2d(skips[-1], 2)
    x = network.encoders[-1](x)
    for upsampling, decoder in zip(network.upsamplings, network.decoders, strict=True):
        x, skip = upsampling(x), skips.pop()
        top, left = ((a - b) // 2 for a, b in zip(skip.shape[-2:], x.shape[-2:], strict=True))
        skip = skip[..., top : top + x.shape[2], left : left + x.shape[3]]
        x = decoder(torch.cat((skip, x), dim=1))
    logits: Tensor = network.classifier(x)
    return logits


def test_it_is_the_network_of_the_paper(network: unet.UNet) -> None:
    image = np.random.default_rng(0).standard_normal((1, 3, 388, 388), dtype=np.float32)
    tile = np.pad(image, ((0, 0), (0, 0), (BORDER, BORDER), (BORDER, BORDER)), mode="reflect")
    assert tile.shape[-2:] == (572, 572)
    with torch.inference_mode():
        expected = unpadded(network, torch.from_numpy(tile))
        got = network(torch.from_numpy(image))
    assert expected.shape[-2:] == (388, 388)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("size", [(16, 16), (17, 45), (33, 100), (96, 31)])
def test_any_size_is_a_tile_with_a_mirrored_border(
    network: unet.UNet, size: tuple[int, int]
) -> None:
    image = np.random.default_rng(0).standard_normal((1, 3, *size), dtype=np.float32)
    more = [(4 - side) % 16 for side in size]  # the paper's outputs are 16 k + 4 pixels wide
    around = [(BORDER, BORDER + m) for m in more]
    tile = torch.from_numpy(np.pad(image, [(0, 0), (0, 0), *around], mode="reflect"))
    with torch.inference_mode():
        expected = unpadded(network, tile)[..., : size[0], : size[1]]
        got = network(torch.from_numpy(image))
    assert got.shape[-2:] == size
    torch.testing.assert_close(got, expected)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="same or valid, not mirror"):
        unet.build(3, padding="mirror")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="transposed or bilinear, not nearest"):
        unet.build(3, up="nearest")  # type: ignore[arg-type]
