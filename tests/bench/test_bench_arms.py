"""Which methods and budgets are measured, and what is counted for them."""

import dataclasses

import pytest

from edge_atp.bench.arms import plan_bench_arms
from edge_atp.bench.dimensions import model_spec, plan_of
from edge_atp.errors import ConfigError
from edge_atp.evaluation.arms import Arm, plan_arms
from edge_atp.flops import account, named
from edge_atp.types import Policy


@pytest.fixture(scope="module")
def manifest(pipeline):
    return pipeline.manifest


def in_pieces(manifest):
    """The same model as if exported one layer to a graph."""
    return dataclasses.replace(
        manifest,
        llm=dataclasses.replace(manifest.llm, block_layers=1),
        vision=dataclasses.replace(manifest.vision, group_layers=1),
    )


def test_dense_comes_first_and_budgets_that_keep_everything_are_dense(manifest):
    arms = plan_bench_arms(("atp", "none", "atp", "cls_topk"), (32, 256, 999, 64, 32), manifest)
    names = [arm.name for arm in arms]
    assert names == ["dense", "atp@64", "atp@32", "cls_topk@64", "cls_topk@32"]


@pytest.mark.parametrize("method", ["magic", "fastv", "ivtp"])
def test_what_this_directory_cannot_run_is_refused_with_what_it_can(manifest, method):
    with pytest.raises(ConfigError, match=rf"{method}, which this model directory.*cls_topk"):
        plan_bench_arms(("atp", method), (64,), manifest)


def test_a_model_in_pieces_runs_methods_that_cut_inside_it(manifest):
    arms = plan_bench_arms(("fastv", "vtw", "ivtp"), (64,), in_pieces(manifest))
    assert [arm.name for arm in arms] == ["dense", "fastv@64", "vtw", "ivtp@64"]
    # It drops every token at one layer, so that no number can be asked for.
    assert arms[2].prune_spec().policy is Policy.NODE_DEFAULT
    assert arms[1].prune_spec().max_visual_tokens == 64


def test_benchmark_and_evaluation_name_their_arms_alike(manifest):
    pieces = in_pieces(manifest)
    methods = ("atp", "vtw", "fastv")
    assert plan_bench_arms(methods, (64, 32), pieces) == plan_arms(methods, (64, 32), 256, pieces)
    # Without a budget below N a method that takes none is measured all the same.
    assert [arm.name for arm in plan_bench_arms(methods, (256,), pieces)] == ["dense", "vtw"]


def test_flops_of_cuts_inside_a_shallow_model_are_counted_where_they_happen(manifest):
    spec, _ = model_spec(manifest)
    pieces = in_pieces(manifest)
    totals = {}
    for arm in plan_bench_arms(("atp", "fastv", "vtw", "ivtp"), (64,), pieces):
        costs = account(spec, plan_of(spec, arm, 20, pieces), 20, 4, "engine")
        totals[arm.name] = costs.total
    assert totals["ivtp@64"] < totals["atp@64"] < totals["fastv@64"] < totals["dense"]


def test_dimensions_come_from_the_manifest_or_from_the_checkpoint(manifest):
    spec, source = model_spec(manifest)
    assert "manifest.json" in source
    assert (spec.visual_tokens, spec.llm.layers, spec.llm.gated) == (256, 4, True)
    # Layer -2 feeds the projector, but the joint space is behind the last one.
    assert spec.vision.layers == manifest.vision.layers
    assert spec.patch_values == 3 * 14 * 14


def test_a_manifest_that_states_the_encoders_shape_leaves_nothing_to_assume(manifest):
    full = dataclasses.replace(
        manifest,
        vision=dataclasses.replace(manifest.vision, intermediate=700),
        text_tower=dataclasses.replace(
            manifest.text_tower, layers=3, hidden=128, heads=2, intermediate=500
        ),
    )
    spec, source = model_spec(full)
    assert source == "manifest.json"
    assert spec.vision.mlp_width == 700
    assert (spec.text.layers, spec.text.mlp_width, spec.text.head_width) == (3, 500, 64)
    with_text = account(spec, plan_of(spec, Arm("atp", 64), 20, full), 20, 4, "engine")
    assert with_text.text_tower > 0
    early = dataclasses.replace(
        full,
        vision=dataclasses.replace(full.vision, intermediate=0),
        text_tower=dataclasses.replace(full.text_tower, hidden=0),
    )
    assert "MLP of the ViT assumed 4 times its width; text encoder not" in model_spec(early)[1]


def test_the_text_encoder_is_left_out_where_its_size_is_unknown(manifest):
    spec, _ = model_spec(manifest)
    assert plan_of(spec, Arm("atp", 64), 20, manifest).text_tower is (spec.text is not None)
    assert plan_of(named("llava-1.5-7b"), Arm("atp", 64), 20).text_tower
