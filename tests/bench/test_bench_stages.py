"""Where the time of a real answer goes, and what is asked."""

import time

import pytest

from edge_atp.bench.memory import high_water_bytes, restart_high_water
from edge_atp.bench.questions import (
    BUILT_IN,
    Question,
    drawn_picture,
    read_pictures,
    read_questions,
)
from edge_atp.bench.stages import STAGES, EngineContender, Stopwatch
from edge_atp.errors import ConfigError, ImageError
from edge_atp.evaluation.arms import Arm
from edge_atp.types import Frame

TOKENS = {"short": 3, "caption": 6}


def contender(pipeline, arm, **options):
    return EngineContender(arm.name, pipeline, arm, [Frame(drawn_picture())], TOKENS, **options)


def test_stages_add_up_to_the_whole_answer(timed_pipeline):
    for arm in (Arm("dense", 256), Arm("atp", 64), Arm("divprune", 64)):
        run = contender(timed_pipeline, arm).answer(BUILT_IN[0], 0)
        assert set(run.stages_ms) == set(STAGES)
        assert sum(run.stages_ms.values()) == pytest.approx(run.wall_ms, rel=0.02, abs=0.3)
        assert run.visual_kept == arm.num_kept
        for stage in ("preprocess", "vision", "project", "prefill", "decode", "select"):
            assert run.stages_ms[stage] > 0, (arm.name, stage)
        assert run.compared_wall_ms == pytest.approx(run.wall_ms - run.stages_ms["preprocess"])


def test_every_stage_is_timed_where_it_runs(timed_pipeline, monkeypatch):
    opened = []
    stage = Stopwatch.stage

    def note(watch, name):
        opened.append(name)
        return stage(watch, name)

    monkeypatch.setattr(Stopwatch, "stage", note)
    contender(timed_pipeline, Arm("atp", 64)).answer(BUILT_IN[0], 0)
    assert opened[:2] == ["preprocess", "vision"]
    # Decoding goes on inside the call that prefills; "other" is what no call opened.
    assert set(opened) == set(STAGES) - {"decode", "other"}
    assert opened.count("preprocess") == 1


def test_only_methods_that_read_the_question_pay_for_its_encoder(timed_pipeline):
    def text_ms(arm, **options):
        return contender(timed_pipeline, arm, **options).answer(BUILT_IN[0], 0).stages_ms["text"]

    assert text_ms(Arm("cls_topk", 64)) == 0.0
    assert text_ms(Arm("dense", 256)) == 0.0
    asked_anew = text_ms(Arm("atp", 64))
    assert asked_anew > 0.0
    # A standing question's embedding is there already: nothing but a look-up is left.
    embeds = timed_pipeline.engine.encode_text(BUILT_IN[0].text)
    text_ms(Arm("atp", 64), standing=True)
    assert timed_pipeline.engine.encode_text(BUILT_IN[0].text) is embeds


def test_every_answer_is_the_pipelines_own(timed_pipeline, float_pipeline):
    from edge_atp.types import Query

    arm = Arm("atp", 64)
    run = contender(timed_pipeline, arm).answer(BUILT_IN[0], 0)
    query = Query(BUILT_IN[0].text, max_new_tokens=3, prune=arm.prune_spec())
    answer = float_pipeline.answer(query, [Frame(drawn_picture())])
    assert run.token_ids == answer.token_ids
    assert run.text_tokens == answer.tokens.prompt_text


def test_the_longest_answer_is_that_of_its_kind(timed_pipeline):
    dense = contender(timed_pipeline, Arm("dense", 256))
    assert len(dense.answer(Question("describe the scene.", "caption"), 0).token_ids) == 6
    assert len(dense.answer(Question("describe the scene."), 0).token_ids) == 3


def test_nested_stages_are_not_counted_twice():
    watch = Stopwatch()
    with watch.stage("select"):
        spin(0.004)
        with watch.stage("text"):
            spin(0.008)
        with watch.stage("project"):  # inside a selection: its own cost
            spin(0.004)
    with watch.stage("project"):
        spin(0.002)
    assert watch.wall_ms["text"] >= 8.0
    assert watch.wall_ms["select"] >= 8.0
    assert watch.wall_ms["project"] >= 2.0
    whole = sum(watch.wall_ms.values())
    watch.book()
    assert whole <= sum(watch.wall_ms.values())
    watch.restart()
    assert watch.wall_ms == watch.cpu_ms == {}


def spin(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_the_high_water_mark_rises_with_memory_and_can_begin_anew():
    if not restart_high_water():
        pytest.skip("this system cannot start the high-water mark anew")
    before = high_water_bytes()
    block = bytearray(64 << 20)
    assert high_water_bytes() >= before + (60 << 20)
    del block
    restart_high_water()
    assert high_water_bytes() < before + (60 << 20)


def test_question_files_mark_captions(tmp_path):
    path = tmp_path / "questions.txt"
    path.write_text("# mine\nwhere is it?\n\ncaption: describe the scene.  # long\nnote: what?\n")
    assert read_questions(path) == (
        Question("where is it?"),
        Question("describe the scene.", "caption"),
        Question("note: what?"),
    )


@pytest.mark.parametrize("content", ["", "# nothing\n"])
def test_a_question_file_without_questions_is_refused(tmp_path, content):
    path = tmp_path / "questions.txt"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"questions\.txt: holds no question"):
        read_questions(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_questions(tmp_path / "absent.txt")


def test_pictures_are_read_or_drawn_alike_everywhere(tmp_path):
    assert (drawn_picture() == read_pictures([])[0]).all()
    with pytest.raises(ImageError, match="not an image"):
        read_pictures([tmp_path / "absent.png"])


def test_time_that_no_timed_call_claims_goes_to_the_stage_the_pipeline_booked_it_for():
    watch = Stopwatch()
    watch.wall_ms = {"other": 20.0, "vision": 3.0}
    watch.cpu_ms = {"other": 10.0, "vision": 3.0}
    watch.claim("vision", 15.0)  # the encoder ran in pieces, 12 ms of it unseen
    assert watch.wall_ms == {"other": 8.0, "vision": 15.0}
    assert watch.cpu_ms == {"other": 4.0, "vision": 9.0}
    watch.claim("select", 100.0)  # never more than there is
    assert watch.wall_ms == {"other": 0.0, "vision": 15.0, "select": 8.0}
    watch.claim("preprocess", 0.0)
    assert "preprocess" not in watch.wall_ms
