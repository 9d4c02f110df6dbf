"""`edge-atp replay` as a user meets it: options, exit status, and nothing half-written."""

import json

import pytest
from replay_run import BAG, replay
from rosbags.highlevel import AnyReader

import edge_atp.cli.replay as command


@pytest.fixture
def ask_once(tmp_path):
    """A questions file with one question about the first frame."""

    def write(expect=None, text="what is the gripper holding?"):
        path = tmp_path / "once.yaml"
        entry = {"ask": text, "mode": "once", **({"expect": expect} if expect else {})}
        path.write_text(json.dumps([entry]), encoding="utf-8")
        return path

    return write


def test_check_exits_with_1_on_a_wrong_answer(tmp_path, ask_once, capsys):
    questions = ask_once(expect="certainly not this")
    assert replay(tmp_path / "a.mcap", "--check", questions=questions) == 1
    assert "0/1 right" in capsys.readouterr().out
    assert replay(tmp_path / "b.mcap", questions=questions) == 0


def test_check_needs_something_to_expect(tmp_path, ask_once, capsys):
    assert replay(tmp_path / "a.mcap", "--check", questions=ask_once()) == 2
    assert "no question in" in capsys.readouterr().err


def test_an_existing_result_is_replaced_only_on_demand(tmp_path, ask_once, capsys):
    out = tmp_path / "a.mcap"
    out.write_bytes(b"precious")
    assert replay(out, questions=ask_once()) == 2
    assert "exists already" in capsys.readouterr().err
    assert out.read_bytes() == b"precious"
    assert replay(out, "--force", questions=ask_once()) == 0
    with AnyReader([out]) as reader:
        assert reader.message_count == 4
    folder = tmp_path / "folder"
    assert replay(folder, questions=ask_once()) == 0
    assert replay(folder, "--force", questions=ask_once()) == 0


def test_a_folder_that_is_no_bag_is_never_replaced(tmp_path, ask_once, capsys):
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    assert replay(folder, "--force", questions=ask_once()) == 2
    assert "is a folder but not a bag" in capsys.readouterr().err
    assert (folder / "thesis.txt").read_text() == "precious"


def test_ctrl_c_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command.Report, "add", interrupt)
    assert replay(tmp_path / "out" / "a.mcap", "--every", 20) == 130
    assert list((tmp_path / "out").iterdir()) == []


def test_a_question_outside_the_recording_is_said(tmp_path, capsys):
    questions = tmp_path / "late.yaml"
    questions.write_text("- {ask: hi, at: 100000}")
    assert replay(tmp_path / "out" / "a.mcap", questions=questions) == 2
    assert "no question was due in the recording" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_undecodable_frames_become_error_answers(tmp_path, write_bag, ask_once, capsys):
    bag = write_bag([("/camera/image_raw", 0)], encoding="32FC1")
    out = tmp_path / "a.mcap"
    options = ("--report", tmp_path / "report")
    assert replay(out, *options, bag=bag, questions=ask_once(text="<b>what?</b>")) == 0
    assert "1 with an error" in capsys.readouterr().out
    with AnyReader([out]) as reader:
        connections = [c for c in reader.connections if c.topic == "/vlm_node/answer"]
        ((connection, _, data),) = reader.messages(connections)
        answer = reader.deserialize(data, connection.msgtype)
        assert reader.message_count == 1  # no mask of a frame nobody saw
    assert answer.status == answer.STATUS_ERROR
    assert answer.error_code == answer.ERROR_UNSUPPORTED_ENCODING
    assert "32FC1" in answer.error_msg
    page = (tmp_path / "report" / "report.html").read_text()
    assert "32FC1" in page
    assert "&lt;b&gt;what?&lt;/b&gt;" in page
    assert "<b>" not in page


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--every", 0], "--every is 0"),
        (["--camera", "camera=/other"], "holds no images on /other (camera 'camera')"),
        (["--camera", "camera"], "must be NAME=TOPIC"),
        (["--model", "absent"], "no model directory at 'absent'"),
        (["--keep-ratio", 2], "keep_ratio is 2"),
        (["--method", "absent"], "absent"),
        (["--node", "/"], "--node is '/'"),
    ],
)
def test_a_wrong_option_is_explained_in_one_line(tmp_path, capsys, options, says):
    assert replay(tmp_path / "out.mcap", *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("edge-atp replay: ")
    assert says in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_refused_question_is_named_by_file_and_entry(tmp_path, capsys):
    questions = tmp_path / "q.yaml"
    questions.write_text("- ask: fine\n- {ask: hi, prune: {keep_ratio: 1.5}}")
    assert replay(tmp_path / "out.mcap", questions=questions) == 2
    assert "q.yaml, entry 2: prune.keep_ratio is 1.5" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [questions]


def test_a_missing_bag_is_named(tmp_path, capsys):
    assert replay(tmp_path / "out.mcap", bag=BAG / "absent") == 2
    assert "absent does not exist" in capsys.readouterr().err
