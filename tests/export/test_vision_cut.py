"""The encoder that drops patches on the way: its graph, its gates, and methods behind it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoints import PROMPT, llm_config, save_llava

from edge_atp import pruning
from edge_atp.bench.arms import plan_bench_arms
from edge_atp.bench.dimensions import model_of, model_spec, plan_of
from edge_atp.cli.main import main
from edge_atp.config import PipelineConfig
from edge_atp.encoding import EXPORTED_CUT
from edge_atp.errors import ArtifactError, ConfigError, InvalidQueryError, ShapeError
from edge_atp.evaluation.arms import Arm, plan_arms
from edge_atp.flops import account
from edge_atp.pipeline import Pipeline
from edge_atp.pruning.schedule import Schedule, Stage
from edge_atp.runtime.cut_encoder import CutEncoder
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.model_dir import ModelDirectory
from edge_atp.runtime.profiles import is_executed
from edge_atp.types import Frame, LayerCut, Policy, PruneSpec, Query, VisualSignals
from export import parity_cut, recipe
from export.architecture import read_llava
from export.dialects import load_dialect
from export.gates import Measurements
from export.graph import GraphBuilder
from export.parity_cut import compare_cut, encode_with_cuts
from export.precision import get_precision
from export.reference import Reference
from export.settings import ExportSettings
from export.tensorrt.support import PARSERS, lint
from export.vision_cut import emit_vision_cut, read_schedule

QUESTION = "where is the red box on the shelf?"
PATCHES = 16
CUTS = "0:12,1:7"
SCHEDULE = Schedule((Stage(0, 12), Stage(1, 7)))


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("deep"), llm_config("llama"), vision_layers=4)


def export(checkpoint: Path, tower: Path | None, out: Path, **changes: Any) -> ModelDirectory:
    given = {"max_kv": 96, "parity_new_tokens": 2, "vision_cut": CUTS}
    text = str(tower) if tower else ""
    settings = ExportSettings(checkpoint, text_tower=text, prompt=PROMPT, **{**given, **changes})
    return recipe.export_model(settings, out, progress=lambda step: None)


@pytest.fixture(scope="module")
def directory(
    deep: Path, text_tower: Path, tmp_path_factory: pytest.TempPathFactory
) -> ModelDirectory:
    return export(deep, text_tower, tmp_path_factory.mktemp("cut") / "model")


@pytest.fixture(scope="module")
def cutting(directory: ModelDirectory) -> Pipeline:
    return Pipeline.load(PipelineConfig(model=str(directory.path), num_threads=1))


@pytest.fixture(scope="module")
def encoder(cutting: Pipeline) -> CutEncoder:
    return CutEncoder(cutting.engine.open_graph, cutting.manifest)


def frame(seed: int = 0, camera: str = "camera") -> Frame:
    image = np.random.default_rng(seed).integers(0, 255, (28, 28, 3)).astype(np.uint8)
    return Frame(image, camera=camera)


def ask(pipeline: Pipeline, method: str, given: Any, keep: int = 4, **changes: Any) -> Any:
    spec = PruneSpec(Policy.TOKEN_BUDGET, method=method, max_visual_tokens=keep)
    query = Query(QUESTION, max_new_tokens=4, prune=spec, **changes)
    return pipeline.answer(query, [given])


def kept(answer: Any) -> list[int]:
    return np.flatnonzero(answer.masks[0].kept).tolist()


def test_gates_ran_against_the_original(directory: ModelDirectory) -> None:
    gates = directory.manifest.parity["gates"]
    assert gates["cut_jaccard_distance"] == {"value": 0.0, "limit": 0.0}
    assert 0.0 < gates["cut_features_relative_l2"]["value"] < 1e-5
    assert gates["cut_cls_attention_max_abs"]["value"] < 1e-6
    vision = directory.manifest.vision
    assert (vision.cut_layers, vision.cut_kept) == ((0, 1), (12, 7))


@pytest.mark.parametrize(
    ("dialect", "changes"), [("prim18", {}), ("prim17", {}), ("ort-gqa", {"tower": None})]
)
def test_other_dialects_and_no_joint_space(
    deep: Path, text_tower: Path, tmp_path: Path, dialect: str, changes: dict[str, Any]
) -> None:
    tower = changes.get("tower", text_tower)
    found = export(deep, tower, tmp_path / "model", dialect=dialect)
    assert found.manifest.parity["gates"]["cut_jaccard_distance"]["value"] == 0.0
    outputs = {output.name for output in found.manifest.graph("vision_cut").outputs}
    assert ("patch_embeds" in outputs) is (tower is not None)
    engine = Engine.load(found, "ort-cpu", num_threads=1)
    given = np.random.default_rng(1).normal(size=(1, 3, 28, 28)).astype(np.float32)
    seen = CutEncoder(engine.open_graph, found.manifest).encode(given)
    assert seen.patch_features.shape == (7, 48)
    assert len(seen.place) == 7
    assert seen.patch_embeds.shape == ((7, 24) if tower else (7, 0))


@pytest.mark.parametrize("dialect", ["prim17", "prim18", "std24"])
def test_a_tensorrt_reads_the_graph(deep: Path, tmp_path: Path, dialect: str) -> None:
    model = read_llava(deep)
    graph = GraphBuilder("vision_cut", opset=load_dialect(dialect).opset)
    emit_vision_cut(graph, model.tensors, model.vision, None, dialect=dialect, schedule=SCHEDULE)
    path = tmp_path / "vision_cut.onnx"
    graph.save(path)
    assert any(not lint(path, parser) for parser in PARSERS)
    # One profile of static shapes, and an engine is built from it like from any other.
    assert is_executed("vision_cut")


def test_the_gate_sees_another_rule(deep: Path, cutting: Pipeline, pixels: np.ndarray) -> None:
    """Agreement would prove nothing if a graph with other cuts passed as well."""
    reference, measured = Reference(deep, None), Measurements({})
    compare_cut(reference, cutting.engine, [pixels], measured)
    assert measured.as_json()["cut_features_relative_l2"]["value"] < 1e-4
    right = encode_with_cuts(reference, pixels, SCHEDULE)
    for other in (Schedule((Stage(1, 7),)), Schedule((Stage(0, 7),))):
        features, _, place, _ = encode_with_cuts(reference, pixels, other)
        same = place.tolist() == right[2].tolist()
        assert not same or np.abs(features - right[0]).max() > 1e-3


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_encoder_that_keeps_none_of_the_right_patches_fails_its_gate(
    deep: Path,
    cutting: Pipeline,
    encoder: CutEncoder,
    pixels: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
) -> None:
    reference = Reference(deep, None)
    images = [pixels, -pixels, 2 * pixels]
    places = [np.setdiff1d(np.arange(PATCHES), encoder.encode(i).place)[:7] for i in images]
    gaps = [1e-2, 1e-2, 1e-7]  # of the third, rounding may have chosen
    others = iter(zip(places, gaps, strict=True))

    def elsewhere(*given: Any) -> tuple[Any, ...]:
        features, attention, _, _ = encode_with_cuts(*given)
        return features, attention, *next(others)

    monkeypatch.setattr(parity_cut, "encode_with_cuts", elsewhere)
    measured = Measurements(get_precision(precision, "ort-gqa").limits)
    compare_cut(reference, cutting.engine, images, measured)
    said = r"cut_jaccard_distance is 1, .*cut_images_without_common_patch is 2, limit 0"
    with pytest.raises(ArtifactError, match=said):
        measured.require()


def test_without_cuts_the_reference_is_the_original(deep: Path, pixels: np.ndarray) -> None:
    reference = Reference(deep, None)
    features, attention, place, _ = encode_with_cuts(reference, pixels, Schedule(()))
    whole = reference.encode_image(pixels)
    np.testing.assert_allclose(features, whole.patch_features, atol=1e-5)
    np.testing.assert_allclose(attention, whole.cls_attention, atol=1e-6)
    assert place.tolist() == list(range(PATCHES))


def test_another_picture_keeps_other_patches(encoder: CutEncoder, pixels: np.ndarray) -> None:
    one, two = encoder.encode(pixels), encoder.encode(-pixels)
    assert one.place.tolist() != two.place.tolist()
    with pytest.raises(ShapeError, match="pixel_values is"):
        encoder.encode(pixels[:, :, 1:])
    with pytest.raises(ShapeError, match="NaN"):
        encoder.encode(np.full_like(pixels, np.nan))


def test_atp_chooses_among_what_is_left(cutting: Pipeline, encoder: CutEncoder) -> None:
    answer = ask(cutting, "cut+atp", frame())
    seen = encoder.encode(cutting.preprocess(frame().image)[0])
    signals = VisualSignals(
        cls_attention=seen.cls_attention,
        patch_embeds=seen.patch_embeds,
        text_embed=cutting.engine.encode_text(QUESTION),
    )
    expected = seen.place[pruning.load("atp", alpha=0.5).select(signals, 4).kept_indices]
    assert kept(answer) == expected.tolist()
    assert answer.method == "cut+atp"
    assert answer.cuts == (LayerCut("vision", 0, 12), LayerCut("vision", 1, 7))
    assert (answer.tokens.visual_total, answer.tokens.visual_kept) == (PATCHES, 4)
    dropped = np.delete(answer.masks[0].scores, seen.place)
    assert (dropped == answer.masks[0].scores.min()).all()


def test_the_cut_alone_keeps_what_the_encoder_leaves(
    cutting: Pipeline, encoder: CutEncoder
) -> None:
    place = encoder.encode(cutting.preprocess(frame().image)[0]).place
    assert kept(ask(cutting, "cut+none", frame(), keep=7)) == place.tolist()


@pytest.mark.parametrize("method", ["divprune", "cls_topk", "random", "visionzip", "vispruner"])
def test_other_methods_behind_the_cut(cutting: Pipeline, encoder: CutEncoder, method: str) -> None:
    place = encoder.encode(cutting.preprocess(frame().image)[0]).place
    answer = ask(cutting, f"cut+{method}", frame(), keep=3)
    assert len(kept(answer)) == 3
    assert set(kept(answer)) <= set(place.tolist())


def test_score_mass_counts_what_is_left(cutting: Pipeline) -> None:
    spec = PruneSpec(Policy.SCORE_MASS, method="cut+atp", score_mass=1.0)
    answer = cutting.answer(Query(QUESTION, max_new_tokens=2, prune=spec), [frame()])
    assert 1 <= answer.tokens.visual_kept <= 7


def test_one_encoding_serves_questions_of_its_own_kind(cutting: Pipeline) -> None:
    whole, cut = cutting.encode(frame()), cutting.encode(frame(), cut=EXPORTED_CUT)
    assert cut.vision.place is not None
    assert whole.vision.place is None
    assert ask(cutting, "cut+atp", cut).reused.images == 1
    assert ask(cutting, "atp", whole).reused.images == 1
    # The other kind is encoded anew, from the same frame.
    assert ask(cutting, "cut+atp", whole).reused.images == 0
    assert ask(cutting, "atp", cut).reused.images == 0
    assert kept(ask(cutting, "cut+atp", whole)) == kept(ask(cutting, "cut+atp", cut))
    assert kept(ask(cutting, "atp", cut)) == kept(ask(cutting, "atp", whole))


def test_a_part_of_a_frame_is_encoded_again_as_that_part(cutting: Pipeline) -> None:
    """As of a camera with a region of interest, whose mask is about the whole image."""
    whole = frame()
    part = replace(whole, image=whole.image[8:22, 4:28])
    inner = cutting.encode(part)
    region = replace(inner.region, x=inner.region.x + 4, y=inner.region.y + 8)
    shifted = replace(inner, frame=whole, region=region)
    answer = ask(cutting, "cut+atp", shifted)
    assert kept(answer) == kept(ask(cutting, "cut+atp", part))
    assert answer.masks[0].region == region
    assert answer.masks[0].frame is whole
    assert kept(answer) != kept(ask(cutting, "cut+atp", whole))


def test_a_question_says_which_encoder_it_wants(cutting: Pipeline) -> None:
    for method, wanted in (("cut+atp", EXPORTED_CUT), ("atp", None), ("", None)):
        query = Query(QUESTION, prune=PruneSpec(method=method))
        assert cutting.wants_cut(query, 2) == [wanted] * 2


def test_each_image_has_the_encoder_that_its_budget_wants(cutting: Pipeline) -> None:
    some = PruneSpec(Policy.TOKEN_BUDGET, method="cut+atp", max_visual_tokens=4)
    every = PruneSpec(Policy.OFF, method="cut+atp")
    for specs, kept in (((some, every), [4, PATCHES]), ((every, some), [PATCHES, 4])):
        query = Query(QUESTION, max_new_tokens=2, prune_per_image=specs)
        wanted = [EXPORTED_CUT if spec is some else None for spec in specs]
        assert cutting.wants_cut(query, 2) == wanted
        answer = cutting.answer(query, [frame(0), frame(1)])
        assert [int(mask.kept.sum()) for mask in answer.masks] == kept
        assert [cut.num_kept for cut in answer.cuts] == [12, 7]


def test_an_unchanged_frame_is_not_taken_for_the_other_encoder(directory: ModelDirectory) -> None:
    config = PipelineConfig(model=str(directory.path), num_threads=1, frame_tolerance=0.0)
    pipeline = Pipeline.load(config)
    assert ask(pipeline, "cut+atp", frame()).reused.images == 0
    assert ask(pipeline, "cut+atp", frame()).reused.images == 1
    plain = ask(pipeline, "atp", frame())
    assert plain.reused.images == 0
    assert plain.cuts == ()
    pipeline.close()


def test_two_images_count_both(cutting: Pipeline) -> None:
    spec = PruneSpec(Policy.TOKEN_BUDGET, method="cut+atp", max_visual_tokens=4)
    query = Query(QUESTION, max_new_tokens=2, prune=spec)
    answer = cutting.answer(query, [frame(0), frame(1)])
    assert answer.tokens.visual_kept == 8
    assert [cut.num_kept for cut in answer.cuts] == [24, 14]


def test_a_pipeline_may_cut_by_default(directory: ModelDirectory) -> None:
    config = PipelineConfig(
        model=str(directory.path), num_threads=1, method="cut+atp", keep_ratio=0.25
    )
    pipeline = Pipeline.load(config)
    answer = pipeline.answer(Query(QUESTION, max_new_tokens=2), [frame()])
    assert (answer.method, len(kept(answer))) == ("cut+atp", 4)
    pipeline.close()


@pytest.mark.parametrize(
    ("method", "keep", "why"),
    [
        ("cut+atp", 8, "leaves 7"),
        ("cut+spatial", 4, "whole patch grid"),
        ("cut+prumerge", 4, "a layer of its own"),
        ("cut+nothing", 4, "unknown pruning method 'nothing'"),
    ],
)
def test_what_cannot_run_is_refused(cutting: Pipeline, method: str, keep: int, why: str) -> None:
    with pytest.raises(InvalidQueryError, match=why):
        ask(cutting, method, frame(), keep=keep)


def test_arms_of_bench_and_evaluation(cutting: Pipeline, directory: ModelDirectory) -> None:
    manifest = cutting.manifest
    arms = plan_bench_arms(("atp", "cut+atp"), (16, 8, 7, 4), manifest)
    names = [arm.name for arm in arms]
    assert names == ["dense", "atp@8", "atp@7", "atp@4", "cut+atp@7", "cut+atp@4"]
    assert [a.name for a in plan_arms(("cut+atp",), (8, 4), PATCHES, manifest)][1:] == ["cut+atp@4"]
    with pytest.raises(ConfigError, match=r"--keep has 8; .*leaves 7 tokens for cut\+atp"):
        plan_arms(("atp", "cut+atp"), (16, 8), PATCHES, manifest)
    assert len(plan_arms(("cut+atp",), (16,), PATCHES, manifest)) == 1  # keeping all is dense
    with pytest.raises(ConfigError, match="spatial reads the whole patch grid"):
        plan_arms(("cut+spatial",), (4,), PATCHES, manifest)
    with pytest.raises(ConfigError, match="not projected; choose atp"):
        plan_arms(("cut+atp",), (4,), PATCHES)
    with pytest.raises(ConfigError, match=r"cut\+nothing.*and cut\+NAME"):
        plan_bench_arms(("cut+nothing",), (4,), manifest)
    whole = replace(manifest, graphs=tuple(g for g in manifest.graphs if g.role != "vision_cut"))
    with pytest.raises(ConfigError, match="--vision-cut"):
        plan_bench_arms(("cut+atp",), (4,), whole)


def test_flops_of_the_encoder_follow_the_cuts(cutting: Pipeline) -> None:
    manifest = cutting.manifest
    model, _ = model_spec(manifest)
    found = {}
    for arm in (Arm("atp", 4), Arm("cut+atp", 4)):
        seen = model_of(model, arm, manifest)
        plan = plan_of(seen, arm, 10, manifest)
        found[arm.method] = account(seen, plan, 10, 1, "engine").vision
        if arm.method == "cut+atp":
            # Three layers run; behind a cut the merged token counts as one more.
            assert plan.encoder_tokens == ((16, 13), (13, 8), (8, 8))
    assert found["cut+atp"] < 0.7 * found["atp"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2", "LAYER:KEPT"),
        ("a:3", "LAYER:KEPT"),
        ("0:-3", "LAYER:KEPT"),
        ("2:8", "layers 0 to 1"),
        ("0:16", "fewer of the 16"),
        ("0:0", "at least 1"),
        ("0:8,1:8", "fewer"),
        ("1:8,0:4", "ascend"),
        ("0:4,1:8", "cannot keep more"),
    ],
)
def test_bad_schedules_are_refused(deep: Path, text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        read_schedule(text, read_llava(deep).vision)


def test_value_path_takes_the_layer_behind(deep: Path, text_tower: Path, tmp_path: Path) -> None:
    given = {"relevance_source": "value", "compare": False}
    found = export(deep, text_tower, tmp_path / "model", **given)
    engine = Engine.load(found, "ort-cpu", num_threads=1)
    given_pixels = np.random.default_rng(3).normal(size=(1, 3, 28, 28)).astype(np.float32)
    seen = CutEncoder(engine.open_graph, found.manifest).encode(given_pixels)
    assert seen.patch_embeds.shape == (7, 24)
    assert np.isfinite(seen.patch_embeds).all()


def test_info_says_what_the_encoder_leaves(
    directory: ModelDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(directory.path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "cut+NAME where the encoder leaves 12 patches behind vision layer 0, 7 patches" in said
