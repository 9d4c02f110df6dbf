"""Rows behind an encoder that cuts, and patches of the whole grid."""

from types import SimpleNamespace

import numpy as np
import pytest

from edge_atp import pruning
from edge_atp.budget import Budget
from edge_atp.config import PipelineConfig
from edge_atp.early_cut import check_cut, on_whole_grid, require_behind_cut, rows_of
from edge_atp.errors import ConfigError, InvalidQueryError
from edge_atp.methods import Methods
from edge_atp.pipeline import Pipeline
from edge_atp.runtime.cut_encoder import CutEncoder, most_kept, split_method
from edge_atp.types import Policy, Selection

PLACE = np.array([2, 3, 7, 9])


def encoder():
    """One that leaves four patches, and whose graph must not be opened."""
    vision = SimpleNamespace(cut_kept=(8, 4))
    return CutEncoder(lambda role: pytest.fail(f"opened {role}"), SimpleNamespace(vision=vision))


def budget(method="cut+atp", policy=Policy.TOKEN_BUDGET, value=3):
    return Budget(policy, method, 0.5, value)


def test_a_selection_of_rows_speaks_of_the_whole_grid():
    scores = np.array([0.5, 0.25, 1.0, 0.75], np.float32)
    chosen = Selection(np.array([0, 2]), scores, np.array([2, 0]))
    whole = on_whole_grid(chosen, PLACE, 10)
    assert whole.kept_indices.tolist() == [2, 7]
    assert whole.order.tolist() == [7, 2]
    assert whole.scores[PLACE].tolist() == scores.tolist()
    dropped = np.delete(whole.scores, PLACE)
    assert len(whole.scores) == 10
    assert (dropped == 0.25).all()
    assert rows_of(whole.kept_indices, PLACE).tolist() == [0, 2]


def test_without_a_cut_rows_are_patches():
    chosen = Selection(np.array([1, 4]), None, np.array([4, 1]))
    assert on_whole_grid(chosen, None, 10) is chosen
    assert rows_of(chosen.kept_indices, None).tolist() == [1, 4]
    assert on_whole_grid(chosen, np.arange(10), 10).scores is None


def test_names_of_methods_behind_the_cut():
    assert split_method("cut+atp") == (True, "atp")
    assert split_method("atp") == (False, "atp")
    assert split_method("cut+divprune") == (True, "divprune")


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("evit", "cuts inside the model itself"),
        ("fastv", "cuts inside the model itself"),
        ("spatial", "whole patch grid"),
        ("prumerge", "a layer of its own"),
    ],
)
def test_methods_that_cannot_stand_behind_the_cut(method, why):
    with pytest.raises(ConfigError, match=why):
        require_behind_cut(f"cut+{method}", pruning.load(method))


def test_a_pipeline_with_such_a_default_is_refused_at_once(pipeline):
    with pytest.raises(ConfigError, match=r"cut\+spatial: spatial reads the whole patch grid"):
        Pipeline(pipeline.engine, pipeline.engine.directory, PipelineConfig(method="cut+spatial"))


def test_more_tokens_than_the_cut_leaves_are_refused_before_any_work():
    with pytest.raises(InvalidQueryError, match=r"keep 5 visual tokens.*leaves 4.*ask for atp"):
        check_cut(encoder(), budget(value=5), 10)
    with pytest.raises(InvalidQueryError, match="keep 5"):
        check_cut(encoder(), budget(policy=Policy.KEEP_RATIO, value=0.5), 10)
    check_cut(encoder(), budget(value=4), 10)
    check_cut(encoder(), budget(policy=Policy.SCORE_MASS, value=0.9), 10)


def test_a_directory_without_the_graph_says_how_to_get_it(pipeline):
    manifest = pipeline.manifest
    if any(graph.role == "vision_cut" for graph in manifest.graphs):
        graphs = tuple(graph for graph in manifest.graphs if graph.role != "vision_cut")
        manifest = SimpleNamespace(graphs=graphs, source=manifest.source)
    with pytest.raises(ConfigError, match=r"cut\+atp needs.*--vision-cut LAYER:KEPT.*choose atp"):
        Methods(manifest, 0).of(budget())


def test_a_method_is_built_once_per_weight(pipeline):
    methods = Methods(pipeline.manifest, 7)
    plain = Budget(Policy.TOKEN_BUDGET, "atp", 0.25, 8)
    built = methods.of(plain)
    assert built.alpha == 0.25
    assert methods.of(plain) is built
    assert methods.of(Budget(Policy.KEEP_RATIO, "atp", 0.25, 0.5)) is built
    assert methods.of(Budget(Policy.TOKEN_BUDGET, "atp", 0.75, 8)).alpha == 0.75
    assert methods.of(Budget(Policy.TOKEN_BUDGET, "random", 0.25, 8)).seed == 7
    for step in range(200):  # a weight that changes with every question is not kept for ever
        methods.of(Budget(Policy.TOKEN_BUDGET, "atp", step / 200, 8))
    assert len(methods._built) <= 64


def test_a_method_that_another_thread_makes_room_over_is_returned_all_the_same(pipeline):
    class Forgetful(dict):
        """Another thread empties it right after each entry."""

        def __setitem__(self, key, value):
            del key, value

    methods = Methods(pipeline.manifest, 0)
    methods._built = Forgetful()
    assert methods.of(Budget(Policy.TOKEN_BUDGET, "atp", 0.25, 8)).alpha == 0.25


def test_most_kept_is_what_the_cut_leaves():
    vision = SimpleNamespace(num_patches=10, cut_kept=(8, 4))
    manifest = SimpleNamespace(vision=vision)
    assert most_kept("cut+atp", manifest) == 4
    assert most_kept("atp", manifest) == 10
