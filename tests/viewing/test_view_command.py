"""`edge-atp view`: a .rrd file that rerun reads back, and clear words without rerun."""

from __future__ import annotations

import sys

import pytest

from edge_atp.cli.main import main

pytest.importorskip("rosbags", reason="needs the extra 'bags'")


def test_the_reference_result_becomes_a_file_that_rerun_reads(
    reference, bag, tmp_path, capsys, read_back
):
    saved = tmp_path / "new" / "out.rrd"
    queries = str(bag / "questions.yaml")
    status = main(
        ["view", str(reference), "--bag", str(bag), "--queries", queries, "--save", str(saved)]
    )

    assert status == 0
    assert "202 answers, 202 masks, 121 images" in capsys.readouterr().out
    found = read_back(saved)
    assert found.rows["/answers"] == 202
    assert found.rows["/camera/camera"] == 121
    assert found.rows["/camera/camera/kept"] == 202
    assert "/camera/camera/scores" not in found.rows, "the reference holds none"
    assert not any(entity.startswith("/latency") for entity in found.rows), "nor latencies"
    lines = found.values["/answers TextLog:text"]
    assert any(line.startswith("where is the red box? -> bottom shelf, slot 3 (") for line in lines)
    assert set(found.values["/answers TextLog:level"]) == {"INFO"}
    assert set(found.values["/tokens/kept Scalars:scalars"]) == {64.0}
    assert all(0.5 < value <= 1 for value in found.values["/confidence/q4 Scalars:scalars"])
    assert found.blueprints, "a layout goes with it"


def test_without_the_recording_the_masks_stand_alone(reference, tmp_path, capsys, read_back):
    saved = tmp_path / "out.rrd"
    assert main(["view", str(reference), "--save", str(saved)]) == 0
    assert "202 answers, 202 masks, 0 images" in capsys.readouterr().out
    found = read_back(saved)
    assert "/camera/camera" not in found.rows
    assert found.values["/answers TextLog:text"][0].startswith("q1 -> red box")


def test_without_rerun_the_way_to_get_it_is_named(reference, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rerun", None)
    assert main(["view", str(reference), "--save", "never.rrd"]) == 2
    assert "pip install 'edge-atp[view]'" in capsys.readouterr().err


def test_without_ros_a_live_view_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "edge_atp_ros.viewing", None)
    assert main(["view", "--live"]) == 2
    assert "scripts/with_ros edge-atp view --live" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a result bag, or --live"),
        (["RESULT", "--live"], "not both"),
        (["RESULT", "--save", "out.png"], "files named FILE.rrd"),
        (["/no/such.mcap", "--save", "out.rrd"], "/no/such.mcap does not exist"),
        (["BAG", "--save", "out.rrd"], "holds no answers"),
    ],
)
def test_what_cannot_be_shown_is_refused_by_name(reference, bag, capsys, arguments, message):
    words = {"RESULT": str(reference), "BAG": str(bag)}
    assert main(["view", *(words.get(word, word) for word in arguments)]) == 2
    assert message in capsys.readouterr().err
