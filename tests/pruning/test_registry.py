"""Methods are found by their file, and a new one needs no other edit."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from pruning_cases import make_signals

import edge_atp.pruning
from edge_atp.errors import ConfigError
from edge_atp.pruning import available, load, option_names

NEW_METHOD = '''
"""Keep the first K patches."""
from dataclasses import dataclass
from edge_atp.pruning.base import Pruner, as_indices, kept_from_order


@dataclass(frozen=True)
class Method(Pruner):
    """From ``start`` on."""

    needs = ("patch_features",)
    start: int = 0

    def _select(self, signals, num_kept, /):
        order = list(range(self.start, self.start + num_kept))
        return kept_from_order(as_indices(order, signals.patch_features), None)
'''


@pytest.fixture
def extra_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules count as modules of ``edge_atp.pruning``."""
    path = [*edge_atp.pruning.__path__, str(tmp_path)]
    monkeypatch.setattr(edge_atp.pruning, "__path__", path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("edge_atp.pruning."):
            del sys.modules[name]
            if hasattr(edge_atp.pruning, name.rsplit(".", 1)[-1]):
                delattr(edge_atp.pruning, name.rsplit(".", 1)[-1])


def test_a_new_method_is_one_new_file(extra_folder: Path) -> None:
    assert "first" not in available()
    (extra_folder / "first.py").write_text(NEW_METHOD)

    assert "first" in available()
    assert "first" in available("post_encoder")
    assert option_names("first") == ("start",)
    selection = load("first", start=2).select(make_signals(), 3)
    np.testing.assert_array_equal(selection.kept_indices, [2, 3, 4])
    with pytest.raises(ConfigError, match="first has no option end; it takes start"):
        load("first", end=3)


def test_a_module_without_a_method_is_not_a_method(extra_folder: Path) -> None:
    (extra_folder / "geometry.py").write_text("class Methodical:\n    pass\n")
    assert "geometry" not in available()
    with pytest.raises(ConfigError, match="unknown pruning method 'geometry'"):
        load("geometry")


def test_a_missing_package_breaks_only_the_method_that_needs_it(extra_folder: Path) -> None:
    (extra_folder / "exotic.py").write_text("import not_installed_here\n" + NEW_METHOD)
    assert "exotic" in available()
    load("atp")
    with pytest.raises(ModuleNotFoundError, match="not_installed_here"):
        load("exotic")


def test_infrastructure_is_not_listed() -> None:
    for name in ("base", "ops", "registry", "schedule", "similarity", "attention"):
        assert name not in available()


@pytest.mark.parametrize("name", ["", "Atp", "../atp", "base", "atp.Method", "fast v"])
def test_an_unknown_name_lists_the_choices(name: str) -> None:
    with pytest.raises(ConfigError, match=r"choose one of atp, .*vtw"):
        load(name)


def test_sites() -> None:
    assert available("in_encoder") == ("evit", "tome")
    assert available("in_llm") == (
        "atp_progressive",
        "fastv",
        "ivtp",
        "pyramiddrop",
        "sparsevlm",
        "vtw",
    )
    everything = (*available("post_encoder"), *available("in_encoder"), *available("in_llm"))
    assert sorted(everything) == list(available())


@pytest.mark.parametrize("name", [*available("in_encoder"), *available("in_llm")])
def test_a_method_inside_the_model_says_how_to_run_it(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} runs inside .*edge_atp\.hf\.attach"):
        load(name).select(make_signals(), 5)
