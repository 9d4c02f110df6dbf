"""What `edge-atp diff` finds, and its exit status."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from replay_run import BAG, diff, replay

from edge_atp.errors import BagError, ConfigError
from edge_atp.replay.comparison import Tolerance, compare, jaccard
from edge_atp.replay.results import RecordedAnswer, RecordedMask, Results, load_results
from edge_atp.types import PatchGrid, SourceRegion, Status

REGION = SourceRegion(0, 0, 80, 80)


def mask(*kept, region=REGION):
    bits = np.zeros(16, dtype=np.bool_)
    bits[list(kept)] = True
    return RecordedMask("camera", PatchGrid(4, 4), region, bits)


ANSWER = RecordedAnswer(
    topic="/vlm_node/answer",
    query_id="q1",
    stamp_ns=1_000,
    status=Status.FINAL,
    error_msg="",
    text="red box",
    total_s=0.0,
    model_id="tiny",
    method="atp",
    masks=(mask(0, 1, 2, 3),),
)


def results(*answers):
    return Results(Path("bag"), answers)


def changed(**changes):
    return dataclasses.replace(ANSWER, **changes)


def found(before, after, **tolerance):
    comparison = compare(results(*before), results(*after), Tolerance(**tolerance))
    return [(d.kind, d.before, d.after) for d in comparison.differences]


def test_equal_results_have_no_differences():
    assert found([ANSWER, changed(stamp_ns=2)], [ANSWER, changed(stamp_ns=2)]) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"text": "blue box"}, ("text", "red box", "blue box")),
        ({"status": Status.TRUNCATED}, ("status", "FINAL", "TRUNCATED")),
        ({"masks": (mask(0, 1, 2),)}, ("mask", "camera: 4 kept", "3 kept, overlap 0.750")),
        ({"masks": ()}, ("mask", "1 masks", "0 masks")),
    ],
)
def test_a_change_is_found(changes, expected):
    assert found([ANSWER], [changed(**changes)]) == [expected]


def test_a_mask_over_another_region_never_overlaps():
    other = mask(0, 1, 2, 3, region=SourceRegion(8, 0, 80, 80))
    ((kind, before, after),) = found([ANSWER], [changed(masks=(other,))], mask=0.1)
    assert kind == "mask"
    assert before == "camera: 4x4 patches over 80x80+0+0 px"
    assert after == "camera: 4x4 patches over 80x80+8+0 px"


def test_answers_pair_by_topic_question_and_frame():
    late = changed(stamp_ns=2_000)
    assert found([ANSWER, late], [late]) == [("missing", "red box", "")]
    assert found([late], [ANSWER, late]) == [("added", "", "red box")]
    assert found([late], [ANSWER, late], unpaired=True) == []
    for other in ({"query_id": "q2"}, {"topic": "/other/answer"}):
        assert [kind for kind, *_ in found([ANSWER], [changed(**other)])] == ["missing", "added"]


def test_answers_to_one_question_about_one_frame_pair_in_their_order():
    blue = changed(text="blue box")
    assert found([ANSWER, blue], [ANSWER, blue]) == []
    assert len(found([ANSWER, blue], [blue, ANSWER])) == 2
    assert found([ANSWER, blue], [ANSWER]) == [("missing", "blue box", "")]


def test_masks_within_tolerance_are_equal():
    before, after = [ANSWER], [changed(masks=(mask(0, 1, 2, 4),))]
    assert jaccard(before[0].masks[0], after[0].masks[0]) == pytest.approx(3 / 5)
    assert found(before, after, mask=0.6) == []
    assert len(found(before, after, mask=0.61)) == 1
    assert jaccard(mask(), mask()) == 1.0


def test_latencies_are_compared_by_the_median_of_a_question():
    def run(*seconds):
        return [changed(stamp_ns=n, total_s=s) for n, s in enumerate(seconds)]

    before, after = run(0.1, 0.1, 0.9), run(0.13, 0.13, 0.1)
    assert found(before, after) == []
    assert found(before, after, latency=1.31) == []
    assert found(before, after, latency=1.2) == [("latency", "100.0 ms", "130.0 ms, x1.30")]
    with pytest.raises(BagError, match="a replay writes them with --timings"):
        found(before, run(0.0, 0.0, 0.0), latency=1.2)


def test_another_model_is_noted():
    comparison = compare(results(ANSWER), results(changed(model_id="big")), Tolerance())
    assert comparison.notes == ("model: tiny -> big",)
    assert comparison.differences == ()


@pytest.mark.parametrize("wrong", [{"mask": 1.1}, {"mask": float("nan")}, {"latency": 0.0}])
def test_a_tolerance_out_of_range_is_refused(wrong):
    with pytest.raises(ConfigError, match="tolerance-"):
        Tolerance(**wrong)


def test_results_are_read_back(result, typestore):
    answers = load_results(result[0], typestore).answers
    report = json.loads((result[1] / "report.json").read_text(encoding="utf-8"))["answers"]
    # Sorted: not every version of rosbags keeps the order of messages of one time.
    read = sorted(
        (a.query_id, a.stamp_ns, a.text, int(np.count_nonzero(a.masks[0].kept))) for a in answers
    )
    assert read == sorted(
        (e["query_id"], e["stamp_ns"], e["text"], e["tokens"]["visual_kept"]) for e in report
    )


def test_a_result_equals_itself(result, capsys):
    assert diff(result[0], result[0]) == 0
    assert "equal within tolerance" in capsys.readouterr().out


def test_fewer_frames_are_missing_answers(result, tmp_path, capsys):
    assert replay(tmp_path / "half.mcap", "--every", 20, "--pictures", "none") == 0
    assert diff(result[0], tmp_path / "half.mcap") == 1
    out = capsys.readouterr().out
    assert "differs: " in out
    assert "missing" in out
    assert diff(result[0], tmp_path / "half.mcap", "--paired-only") == 0


def test_a_smaller_budget_changes_the_masks(result, tmp_path, capsys):
    other = tmp_path / "other.mcap"
    assert replay(other, "--every", 10, "--pictures", "none", "--keep-ratio", 0.1) == 0
    capsys.readouterr()
    assert diff(result[0], other, "--json") == 1
    comparison = json.loads(capsys.readouterr().out)
    masks = [d for d in comparison["differences"] if d["kind"] == "mask"]
    assert len(masks) == comparison["num_paired"] == comparison["num_before"]
    assert max(comparison["overlaps"]) < 0.9


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["RESULT", BAG], "holds no answers (edge_atp_msgs/msg/Answer); its topics: /camera"),
        (["RESULT", "absent.mcap"], "bag absent.mcap does not exist"),
        (["RESULT", "RESULT", "--tolerance-mask", "2"], "tolerance-mask is 2"),
        (["RESULT", "RESULT", "--tolerance-latency", "1.1"], "a replay writes them with --timings"),
    ],
)
def test_what_cannot_be_compared_exits_with_2(result, capsys, words, says):
    assert diff(*(result[0] if word == "RESULT" else word for word in words)) == 2
    assert says in capsys.readouterr().err.replace("\n", " ")
