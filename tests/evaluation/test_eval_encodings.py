"""Evaluation, comparison and benchmarks encode an image as their arms want it, each way once."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from edge_atp.cli import main
from edge_atp.config import PipelineConfig
from edge_atp.encoding import EXPORTED_CUT
from edge_atp.errors import ConfigError, InvalidQueryError
from edge_atp.evaluation.answering import Answerer, Task
from edge_atp.evaluation.arms import Arm, dense_arm, plan_arms
from edge_atp.evaluation.benchmarks.files import BenchmarkItem
from edge_atp.evaluation.benchmarks.run import answer_items
from edge_atp.evaluation.comparison import check_sheet, compare
from edge_atp.evaluation.conditions import Condition
from edge_atp.evaluation.encodings import ImageEncodings
from edge_atp.evaluation.lmms_eval_plugin.answerers import EngineAnswerer
from edge_atp.evaluation.lmms_eval_plugin.requests import Request
from edge_atp.pipeline import Pipeline
from edge_atp.runtime.engine import Engine
from edge_atp.types import Frame, Query

# The encoder that cuts leaves 7 of 16 patches.
CUT_ARMS = (Arm("cut+atp", 6), Arm("cut+random", 6), Arm("cut+atp", 3))


@pytest.fixture
def pipeline(three_encoders):
    pipeline = Pipeline.load(
        PipelineConfig(model=str(three_encoders), num_threads=1, max_new_tokens=3)
    )
    yield pipeline
    pipeline.close()


@pytest.fixture
def encoded(monkeypatch):
    """What dropped patches in each encoding that was made, in order."""
    cuts = []
    encode = Pipeline.encode

    def note(self, *given, cut=None, **options):
        cuts.append(cut)
        return encode(self, *given, cut=cut, **options)

    monkeypatch.setattr(Pipeline, "encode", note)
    return cuts


@pytest.fixture
def opened(monkeypatch):
    """Graphs that engines loaded from now on open."""
    roles = []
    open_graph = Engine.open_graph
    monkeypatch.setattr(
        Engine, "open_graph", lambda self, role: roles.append(role) or open_graph(self, role)
    )
    return roles


def forbid_whole(monkeypatch):
    monkeypatch.setattr(Engine, "encode_image", lambda *_: pytest.fail("encoded whole"))


def picture(seed=0):
    return np.random.default_rng(seed).integers(0, 255, (28, 28, 3)).astype(np.uint8)


def test_arms_that_want_the_same_share_it(pipeline, encoded):
    encodings = ImageEncodings(pipeline, Frame(picture()))
    arms = (*CUT_ARMS, dense_arm(16), Arm("atp", 4), Arm("evit", 6), Arm("evit", 8), Arm("ivtp", 6))
    queries = [Query("where?", prune=arm.prune_spec()) for arm in arms]
    first = [encodings.wanted_by(query) for query in queries]
    assert encoded[:2] == [EXPORTED_CUT, None]
    assert [cut.num_kept for cut in encoded[2:]] == [6, 8, 6]
    for query, (encoding, seconds) in zip(queries, first, strict=True):
        assert encodings.wanted_by(query) == (encoding, seconds)
        assert seconds > 0.0
        assert pipeline.answer(query, [encoding]).reused.images == 1
    assert len(encoded) == 5


def test_an_evaluation_of_cuts_alone_never_encodes_the_whole(
    squares_dataset, three_encoders, encoded, opened, monkeypatch
):
    config = PipelineConfig(model=str(three_encoders), num_threads=1, max_new_tokens=3)
    answerer = Answerer(squares_dataset, config)
    opened.clear()
    forbid_whole(monkeypatch)
    arms = (*CUT_ARMS, Arm("evit", 6))
    images = squares_dataset.images[:3]
    tasks = [answerer.answer(Task(image, (Condition(),), arms)) for image in images]
    assert opened.count("vision_cut") == 1, "once for all images"
    assert len(opened) == len(set(opened))
    assert len(encoded) == 2 * len(images), "once for three arms and three questions"
    answerer.close()
    alone = Pipeline.load(config)
    for image, task in zip(images, tasks, strict=True):
        frame = Frame(squares_dataset.read_image(image))
        question = squares_dataset.examples[task.records[0].line - 1].question
        for arm in (arms[0], arms[-1]):
            answer = alone.answer(Query(question, prune=arm.prune_spec()), [frame])
            found = task.records[0].arms[arm.name]
            assert (found.answer, found.num_kept) == (answer.text, answer.tokens.visual_kept)
            assert found.latency_s > 0.0
    alone.close()


def test_a_sheet_encodes_each_way_once(pipeline, encoded):
    dense, rows = compare(
        pipeline, Frame(picture()), "where?", ["atp", "cut+atp", "cut+random", "evit"], [6, 5]
    )
    warm_up, measured = encoded[:4], encoded[4:]
    assert warm_up == measured
    assert measured[:2] == [None, EXPORTED_CUT]
    assert [cut.num_kept for cut in measured[2:]] == [6, 5]
    assert [cell.answer.method for cell in rows[0]] == ["atp", "cut+atp", "cut+random", "evit"]
    assert dense.answer.tokens.visual_kept == 16
    assert all(cell.seconds > 0.0 for row in rows for cell in row)


def test_a_benchmark_encodes_an_image_once_as_it_is_asked(pipeline, encoded, tmp_path, monkeypatch):
    for name in ("a", "b"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture(ord(name)))
    items = [BenchmarkItem(n, f"{name}.png", "where?") for n, name in enumerate("abab")]
    forbid_whole(monkeypatch)
    answers = answer_items(pipeline, items, tmp_path, CUT_ARMS[0].prune_spec())
    assert sorted(answers) == [0, 1, 2, 3]
    assert encoded == [EXPORTED_CUT, EXPORTED_CUT]


@pytest.mark.parametrize("method", ["cut+atp", "evit"])
def test_a_loss_is_of_the_tokens_that_the_method_leaves(three_encoders, monkeypatch, method):
    """Of cut+NAME it was once that of NAME's choice among all patches."""
    request = Request("where is it?", (picture(),), continuation="on the")
    plain = EngineAnswerer(str(three_encoders), "atp", keep=6, threads=1)
    losses = [plain.loss(request)[0]]
    plain.close()
    forbid_whole(monkeypatch)
    answerer = EngineAnswerer(str(three_encoders), method, keep=6, threads=1)
    losses.append(answerer.loss(request)[0])
    assert np.isfinite(losses).all()
    assert losses[0] != losses[1]
    answerer.close()


def test_there_is_no_loss_of_a_method_in_the_language_model(three_encoders):
    answerer = EngineAnswerer(str(three_encoders), "fastv", keep=6, threads=1)
    with pytest.raises(InvalidQueryError, match="fastv drops tokens inside the language model"):
        answerer.loss(Request("where is it?", (picture(),), continuation="on the"))
    answerer.close()


def test_a_sheet_with_a_cell_above_the_cut_is_refused_when_it_is_planned(pipeline):
    manifest = pipeline.manifest
    check_sheet(["atp", "cut+atp", "vtw"], [7, 3], manifest)
    check_sheet(["atp"], [16, 12], manifest)
    # An evaluation has that method's other budgets all the same; a sheet has every cell.
    assert len(plan_arms(["cut+atp"], [12, 6], 16, manifest)) == 2
    for keeps in ([12, 6], [16, 6]):
        said = rf"--keep has {keeps[0]}; .*leaves 7 tokens for cut\+atp.*at most 7, or leave cut"
        with pytest.raises(ConfigError, match=said):
            check_sheet(["atp", "cut+atp"], keeps, manifest)


def test_the_command_says_so_before_a_model_is_loaded(
    three_encoders, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(Pipeline, "load", lambda *_: pytest.fail("loaded"))
    image = tmp_path / "scene.png"
    cv2.imwrite(str(image), picture())
    words = ["compare", str(image), "what is it?", "--model", str(three_encoders)]
    assert main([*words, "--methods", "atp,cut+atp", "--keep", "12,6"]) == 2
    assert "the encoder's cut leaves 7 tokens for cut+atp" in capsys.readouterr().err
    assert main([*words, "--methods", "nothing", "--keep", "6"]) == 2
    assert "unknown pruning method 'nothing'" in capsys.readouterr().err
