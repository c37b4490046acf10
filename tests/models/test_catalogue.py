"""Networks are found by name without loading them; unknown ones get the nearest names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rtseg import plugins
from rtseg.artifact import load_model
from rtseg.errors import ConfigError, ModelError
from rtseg.models import _catalogue
from rtseg.recipe import read_recipe
from rtseg.zoo import model_rows

COLUMNS = {"name", "family", "params", "gmacs", "output_stride", "paper", "year", "reported"}


def test_listing_networks_loads_none_of_them() -> None:
    code = (
        "import sys, rtseg.models, rtseg.zoo; rtseg.zoo.model_rows(); "
        "print([m for m in sys.modules if m.startswith('rtseg.models.') or m == 'torch'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['rtseg.models._catalogue']"


def test_every_family_is_in_the_table() -> None:
    assert {row["family"] for row in _catalogue.table()} == set(plugins.names("rtseg.models"))


def test_rows_of_networks_and_of_shipped_files() -> None:
    rows = model_rows()
    assert all(set(row) >= COLUMNS for row in rows)
    assert len({row["name"] for row in rows}) == len(rows)
    shipped = [row for row in rows if row["shipped"]]
    assert [row["name"] for row in shipped] == ["street-l", "street-m", "street-s"]
    # What authors report and what we measured never share a column.
    assert all(row["reported"] == [] for row in shipped)
    assert all(0 < r["miou"] < 1 for row in rows for r in row["reported"])


@pytest.mark.parametrize("wanted", ["SFNet", "street-m", "Panoptic Feature"])
def test_rows_can_be_filtered_by_name_family_and_paper(wanted: str) -> None:
    rows = model_rows(wanted)
    assert rows
    assert len(rows) < len(model_rows())
    for row in rows:
        assert wanted.casefold() in f"{row['name']} {row['family']} {row['paper']}".casefold()


def test_a_filter_may_find_nothing() -> None:
    assert model_rows("no such thing") == []


def test_an_unknown_network_gets_three_nearest_names() -> None:
    with pytest.raises(ConfigError, match=r"nearest are fpn-r18, fpn-r\d+, ") as caught:
        _catalogue.find("fpn-r17")
    assert str(caught.value).count(",") == 2


def test_an_unknown_model_gets_the_nearest_names_too() -> None:
    with pytest.raises(ModelError, match=r"unknown model 'streat-m'.*nearest names are street-m"):
        load_model("streat-m")


def test_a_network_without_weights_says_how_it_gets_some() -> None:
    with pytest.raises(ModelError, match=r"network = \"fpn-r50\".*rtseg import FILE") as caught:
        load_model("fpn-r50")
    assert "\n" not in str(caught.value)


def test_a_recipe_names_a_network_or_a_family(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    rest = '\n[data]\ntrain = ["synth:"]\nval = "synth:"\n[optimiser]\nsteps = 1\n'

    def model(text: str) -> tuple[str, dict[str, object]]:
        path.write_text(f'name = "x"\n[model]\n{text}{rest}')
        recipe = read_recipe(path).model
        return _catalogue.resolve(recipe.network, recipe.family, recipe.options)

    assert model('network = "fpn-r18"') == ("fpn", {})
    family, options = model('network = "fpn-r50"\noptions = {width = 64}')
    assert family == "fpn"
    assert options["width"] == 64
    assert options["block"] == "bottleneck"
    assert model('family = "fpn"\noptions = {width = 32}') == ("fpn", {"width": 32})
    with pytest.raises(ConfigError, match="unknown network 'fpn'"):
        model('network = "fpn"')
    for both in ('network = "fpn-r18"\nfamily = "fpn"', ""):
        with pytest.raises(ConfigError, match="needs either network"):
            model(both)


def test_options_that_a_family_does_not_take() -> None:
    pytest.importorskip("torch")
    with pytest.raises(ConfigError, match=r"network fpn: .*depth"):
        _catalogue.build("fpn", 5, {"depth": 3})
