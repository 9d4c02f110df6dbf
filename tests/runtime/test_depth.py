"""Where methods cut in models of other depths than the published one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edge_atp.errors import ConfigError
from edge_atp.pruning import available, load
from edge_atp.runtime.depth import fit_options
from edge_atp.runtime.find_model import find_model
from edge_atp.runtime.manifest import FILE_NAME, Manifest, read_manifest

METHODS = (*available("in_encoder"), *available("in_llm"))


def manifest(encoder: int, llm: int, group: int = 1, block: int = 1) -> Manifest:
    shipped = read_manifest(find_model("warehouse_tiny").path / FILE_NAME)
    vision = replace(shipped.vision, layers=encoder, feature_layer=-2, group_layers=group)
    return replace(shipped, vision=vision, llm=replace(shipped.llm, layers=llm, block_layers=block))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "ivtp"])
def test_published_layers_hold_where_the_model_has_them(name: str) -> None:
    options = fit_options(name, manifest(24, 32))
    assert load(name, **options) == load(name)


@pytest.mark.parametrize(
    ("name", "encoder", "llm", "expected"),
    [
        ("ivtp", 24, 32, {}),
        ("ivtp", 24, 40, {}),
        # 12 of 32 layers are 2 of 4: no room for a group of three.
        ("ivtp", 6, 4, {"group_size": 2, "llm_layers": 2, "encoder_layers": 6}),
        ("ivtp", 6, 10, {"group_size": 3, "llm_layers": 3, "encoder_layers": 6}),
        ("evit", 6, 4, {"layers": (0, 2, 3)}),
        ("tome", 6, 4, {"num_layers": 5}),
        ("vtw", 6, 4, {"layer": 2}),
        ("pyramiddrop", 6, 10, {"layers": (3, 5, 8), "ratios": (0.5, 0.25, 0.125)}),
        ("pyramiddrop", 6, 2, {"layers": (1,), "ratios": (0.125,)}),
    ],
)
def test_shallower_models_are_cut_at_the_same_share(
    name: str, encoder: int, llm: int, expected: dict[str, Any]
) -> None:
    assert fit_options(name, manifest(encoder, llm)) == expected
    load(name, **expected)


def test_cuts_lie_where_the_export_can_cut() -> None:
    pieces = manifest(24, 32, group=4, block=8)
    # Groups end in layers 3, 7, 11, ...; of 5, 11, 17 the nearest are taken.
    assert fit_options("evit", pieces) == {"layers": (3, 11, 15)}
    assert fit_options("fastv", pieces) == {"layer": 8}
    assert fit_options("sparsevlm", pieces)["layers"] == (8, 16, 24)
    with pytest.raises(ConfigError, match=r"4 layers exported 4 to a block leave no place"):
        fit_options("fastv", manifest(6, 4, block=4))


def test_methods_between_encoder_and_language_model_need_nothing() -> None:
    assert fit_options("atp", manifest(6, 4)) == {}
