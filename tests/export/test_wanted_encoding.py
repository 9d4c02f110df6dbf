"""Of a model with all three encoders, only the one that a question wants is opened and run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoints import export_three_encoders

from edge_atp.config import PipelineConfig
from edge_atp.encoding import EXPORTED_CUT, Encoding, VisionCut
from edge_atp.errors import ArtifactError, InvalidQueryError
from edge_atp.pipeline import Pipeline
from edge_atp.replay.answering import Replayer
from edge_atp.replay.questions import ReplayQuestion
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.model_dir import ModelDirectory
from edge_atp.timing import StageClock
from edge_atp.types import Answer, Frame, Policy, PruneSpec, Query

QUESTION = "where is the red box on the shelf?"
PATCHES = 16
GROUPS = ["vision_group.0", "vision_group.1", "vision_group.2", "vision_tail"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> ModelDirectory:
    return ModelDirectory.open(export_three_encoders(tmp_path_factory.mktemp("three_encoders")))


@pytest.fixture
def pipeline(directory: ModelDirectory) -> Any:
    pipeline = load(directory.path)
    yield pipeline
    pipeline.close()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Roles of the graphs that engines loaded from now on open, in order."""
    roles: list[str] = []
    open_graph = Engine.open_graph

    def note(engine: Engine, role: str) -> Any:
        roles.append(role)
        return open_graph(engine, role)

    monkeypatch.setattr(Engine, "open_graph", note)
    return roles


def load(path: Path, **settings: Any) -> Pipeline:
    config = PipelineConfig(model=str(path), engine="ort-cpu", num_threads=1, **settings)
    return Pipeline.load(config)


def frame(seed: int = 0) -> Frame:
    image = np.random.default_rng(seed).integers(0, 255, (28, 28, 3)).astype(np.uint8)
    return Frame(image)


def spec(method: str, keep: int = 6) -> PruneSpec:
    return PruneSpec(Policy.TOKEN_BUDGET, method=method, max_visual_tokens=keep)


def query(method: str, keep: int = 6) -> Query:
    return Query(QUESTION, max_new_tokens=4, prune=spec(method, keep))


def encoded_for(pipeline: Pipeline, asked: Query, seed: int = 0) -> Encoding:
    (cut,) = pipeline.wants_cut(asked, 1)
    return pipeline.encode(frame(seed), cut=cut)


def result(answer: Answer) -> tuple[Any, ...]:
    masks = [np.flatnonzero(mask.kept).tolist() for mask in answer.masks]
    return answer.token_ids, masks, answer.cuts, answer.tokens, answer.confidence


def forbid_whole(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.engine, "encode_image", lambda *_: pytest.fail("encoded whole"))


@pytest.mark.parametrize("method", ["evit", "tome", "ivtp", "cut+atp"])
def test_an_encoding_as_wanted_serves_without_another(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """The whole encoder once ran first for methods that have pieces of their own."""
    asked = query(method)
    alone = pipeline.answer(asked, [frame()])
    forbid_whole(pipeline, monkeypatch)
    encoding = encoded_for(pipeline, asked)
    for _ in range(2):
        shared = pipeline.answer(asked, [encoding])
        assert result(shared) == result(alone)
        assert shared.reused.images == 1
        assert shared.times.vision_encode == 0.0 < alone.times.vision_encode
    assert result(pipeline.answer(asked, [frame(1)])) != result(alone)


def test_what_is_wanted_depends_on_method_and_budget(pipeline: Pipeline) -> None:
    wanted = {}
    for method in ("evit", "tome", "ivtp"):
        (cut,) = pipeline.wants_cut(query(method, 8), 1)
        assert isinstance(cut, VisionCut)
        assert (cut.pruner.name, cut.num_kept) == (method, 8)
        wanted[cut] = method
        assert pipeline.wants_cut(query(method, 8), 2) == [cut, cut]
    assert len(wanted) == 3
    assert pipeline.wants_cut(query("cut+atp"), 1) == [EXPORTED_CUT]
    # These choose in the language model alone, or between the two.
    for method in ("fastv", "vtw", "atp", ""):
        assert pipeline.wants_cut(Query(QUESTION, prune=PruneSpec(method=method)), 1) == [None]


def test_an_encoding_of_another_method_or_budget_does_not_serve(pipeline: Pipeline) -> None:
    asked = query("evit", 6)
    alone = result(pipeline.answer(asked, [frame()]))
    others = (query("evit", 8), query("tome", 6), query("cut+atp"), query("atp"))
    for other in others:
        answer = pipeline.answer(asked, [encoded_for(pipeline, other)])
        assert (result(answer), answer.reused.images) == (alone, 0)
        again = pipeline.answer(other, [encoded_for(pipeline, asked)])
        assert result(again) == result(pipeline.answer(other, [frame()]))
        assert again.reused.images == 0


def test_an_unchanged_frame_is_not_encoded_again_by_the_same_cut(
    directory: ModelDirectory,
) -> None:
    pipeline = load(directory.path, frame_tolerance=0.0)
    kinds = (query("evit", 6), query("evit", 8), query("atp"), query("cut+atp"))
    for reused in (0, 1):  # each way is remembered apart, so none drives out another
        for asked in kinds:
            assert pipeline.answer(asked, [frame()]).reused.images == reused
    pipeline.close()


def test_checking_opens_nothing_and_each_graph_is_opened_once(
    directory: ModelDirectory, opened: list[str]
) -> None:
    pipeline = load(directory.path)
    opened.clear()
    asked = {method: query(method) for method in ("evit", "ivtp", "cut+atp", "atp", "fastv")}
    for one in asked.values():
        pipeline.check(one)
        assert pipeline.wants_cut(one, 1)
    assert opened == []
    pipeline.open_graphs(pipeline.wants_cut(asked["evit"], 2))
    assert opened == GROUPS
    # Also by another pipeline on the engine, as after a change of parameters.
    other = Pipeline(pipeline.engine, directory, replace(pipeline.config, seed=7))
    for _ in range(2):
        for user in (pipeline, other):
            for one in asked.values():
                user.open_graphs(user.wants_cut(one, 1))
                user.answer(one, [frame()])
    assert opened == [*GROUPS, "vision_cls", "vision_cut"]
    pipeline.close()


def test_a_default_method_has_its_graphs_once_it_was_asked(
    directory: ModelDirectory, opened: list[str]
) -> None:
    """As the node warms it up."""
    pipeline = load(directory.path, method="ivtp", keep_ratio=0.4)
    pipeline.answer(Query("warm up", max_new_tokens=2), [frame()])
    assert {*GROUPS, "vision_cls"} < set(opened)
    opened.clear()
    pipeline.answer(Query(QUESTION), [frame(1)])
    assert opened == []
    pipeline.close()


def test_opening_can_be_stopped_and_goes_on_when_needed(
    directory: ModelDirectory, opened: list[str]
) -> None:
    pipeline = load(directory.path)
    opened.clear()
    wanted = pipeline.wants_cut(query("evit"), 1)
    pipeline.open_graphs(wanted, should_stop=lambda: len(opened) == 2)
    assert opened == GROUPS[:2]
    pipeline.answer(query("evit"), [frame()])
    assert opened == GROUPS
    pipeline.close()


def test_the_opening_of_graphs_counts_as_waiting(pipeline: Pipeline) -> None:
    (cut,) = pipeline.wants_cut(query("evit"), 1)
    first, second = StageClock(), StageClock()
    pipeline.encode(frame(), first, cut=cut)
    pipeline.encode(frame(), second, cut=cut)
    assert first.times().queue_wait > 0.0 == second.times().queue_wait
    times = first.times()
    assert min(times.preprocess, times.vision_encode, times.prune) > 0.0
    stages = times.queue_wait + times.preprocess + times.vision_encode + times.prune
    assert times.total == pytest.approx(stages, abs=1e-9)


@pytest.mark.parametrize(
    ("method", "role"), [("evit", "vision_group.1"), ("cut+atp", "vision_cut")]
)
def test_a_graph_that_is_gone_is_an_error_until_it_is_back(
    directory: ModelDirectory, tmp_path: Path, method: str, role: str
) -> None:
    shutil.copytree(directory.path, tmp_path / "model")
    pipeline = load(tmp_path / "model")
    graph = tmp_path / "model" / f"{role}.onnx"
    aside = graph.rename(tmp_path / "aside.onnx")
    pipeline.check(query(method))
    for _ in range(2):
        with pytest.raises(ArtifactError, match=graph.name):
            pipeline.answer(query(method), [frame()])
    assert pipeline.answer(query("atp"), [frame()]).tokens.visual_kept == 6
    aside.rename(graph)
    assert pipeline.answer(query(method), [frame()]).masks[0].kept.any()
    pipeline.close()


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("evit", ("evit,none", "none,evit")),
        ("cut+atp", ("cut+atp,none", "none,cut+atp")),
        # These rank the tokens of both images together, also those of the one that keeps all.
        ("fastv", ("fastv", "fastv")),
        ("ivtp", ("ivtp", "ivtp")),
    ],
)
def test_an_image_may_keep_all_where_the_other_does_not(
    pipeline: Pipeline, method: str, names: tuple[str, str]
) -> None:
    every = PruneSpec(Policy.OFF, method=method)
    frames = [frame(0), frame(1)]
    for specs, name, all_of in (
        ((spec(method), every), names[0], 1),
        ((every, spec(method)), names[1], 0),
    ):
        asked = Query(QUESTION, max_new_tokens=2, prune_per_image=specs)
        answer = pipeline.answer(asked, frames)
        assert answer.method == name
        if method not in ("fastv", "ivtp"):
            kept = [int(mask.kept.sum()) for mask in answer.masks]
            assert kept[all_of] == PATCHES > kept[1 - all_of]
        wanted = zip(frames, pipeline.wants_cut(asked, 2), strict=True)
        shared = [pipeline.encode(shown, cut=cut) for shown, cut in wanted]
        again = pipeline.answer(asked, shared)
        assert (result(again), again.reused.images) == (result(answer), 2)


@pytest.mark.parametrize("method", ["atp", "evit", "tome", "cut+atp", "cut+none"])
def test_visual_tokens_are_those_of_the_answer(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    asked = query(method, 7)
    prompts = []
    embed_prompt = Engine.embed_prompt

    def note(engine: Engine, text: str, images: Any, *rest: Any, **options: Any) -> Any:
        prompts.append(images)
        return embed_prompt(engine, text, images, *rest, **options)

    monkeypatch.setattr(Engine, "embed_prompt", note)
    pipeline.answer(asked, [frame(0), frame(1)])
    tokens = pipeline.visual_tokens(asked, [frame(0), frame(1)])
    assert len(prompts) == 1
    for ours, theirs in zip(tokens, prompts[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("method", ["fastv", "ivtp"])
def test_there_are_none_of_a_method_in_the_language_model(pipeline: Pipeline, method: str) -> None:
    with pytest.raises(InvalidQueryError, match=f"{method} drops tokens inside the language model"):
        pipeline.visual_tokens(query(method), [frame()])


class Recording:
    """Three frames of one camera."""

    start_ns = 0

    def __init__(self) -> None:
        self.topics = {"camera": "/image"}

    def images(self) -> Any:
        for number in range(3):
            yield Image(number)


class Image:
    camera = "camera"

    def __init__(self, number: int) -> None:
        self.time_ns = self.stamp_ns = number
        self.frame = lambda: frame(number)


def test_a_replay_runs_no_encoder_that_nobody_wants(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [query("evit"), query("evit"), query("ivtp")]
    alone = [result(pipeline.answer(one, [frame(n)])) for n in range(3) for one in asked]
    forbid_whole(pipeline, monkeypatch)
    replayer = Replayer(pipeline, [ReplayQuestion(one) for one in asked], ["camera"])
    replies = [reply for _, made in replayer.run(Recording()) for reply in made]
    assert [result(reply.answer) for reply in replies] == alone
    assert replayer.num_encoded == 2 * 3  # two questions share one
    for reply in replies:
        times = reply.answer.times
        stages = ("queue_wait", "preprocess", "vision_encode", "prune", "prefill", "decode")
        assert times.total == pytest.approx(sum(getattr(times, s) for s in stages), abs=1e-9)
