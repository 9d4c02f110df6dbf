"""`edge-atp ask` and `info` as a user runs them: in a fresh interpreter."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest


@pytest.fixture(scope="module")
def picture(tmp_path_factory, cell_images):
    path = tmp_path_factory.mktemp("cli") / "cell.png"
    cv2.imwrite(str(path), cv2.cvtColor(cell_images[0], cv2.COLOR_RGB2BGR))
    return path


def edge_atp(*words):
    command = [sys.executable, "-m", "edge_atp.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_ask_prints_json_and_writes_an_overlay(picture, tmp_path):
    overlay = tmp_path / "new" / "kept.png"
    done = edge_atp(
        "ask", picture, "where is the red box?", "--keep-ratio", "0.25", "--json",
        "--overlay", overlay,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["tokens"]["visual_kept"] == len(answer["kept_indices"]) == 64
    shown = cv2.imread(str(overlay))
    assert shown.shape[1] == 640
    assert shown.shape[0] > 480  # the caption stands below the picture


def test_ask_prints_the_answer_for_a_person():
    """The README's first question, about the picture that lies beside it."""
    picture = Path(__file__).parents[2] / "docs" / "cell.jpg"
    done = edge_atp("ask", picture, "what is on the middle shelf, slot 3?", "--method", "none")
    assert done.returncode == 0, done.stderr
    answer, kept, *_, engine = done.stdout.splitlines()
    assert answer == "red drum"
    assert "kept 256/256 visual tokens" in kept
    assert engine.startswith("warehouse_tiny, ")


def test_choices_several_images_and_a_question_that_follows(picture, tmp_path):
    overlay = tmp_path / "kept.png"
    done = edge_atp(
        "ask", picture, "is there a red box?", "--choices", "yes,no", "--image", picture,
        "--then", "is the gripper empty?", "--json", "--overlay", overlay,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    for answer in (first, second):
        assert answer["text"] in ("yes", "no")
        assert answer["confidence_kind"] == "CHOICE_PROB"
        assert sum(answer["choice_probs"]) == pytest.approx(1.0)
        assert answer["tokens"]["visual_total"] == 512
    assert second["reused"]["images"] == 2
    assert second["reused"]["kv_tokens"] > first["reused"]["kv_tokens"]
    assert cv2.imread(str(overlay)).shape[1] == 1280


def test_ask_imports_no_torch(picture):
    program = (
        "import sys; from edge_atp.cli import main\n"
        f"status = main(['ask', {str(picture)!r}, 'where is the red box?'])\n"
        "heavy = {'torch', 'transformers', 'rclpy', 'onnx'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["ask", "absent.png", "hi"], "cannot read image absent.png"),
        (["ask", "PICTURE", "hi", "--keep-ratio", "0"], "keep_ratio is 0"),
        (["ask", "PICTURE", "hi", "--keep-ratio", "nan"], "keep_ratio is nan"),
        (["ask", "PICTURE", "hi", "--method", "magic"], "unknown pruning method 'magic'"),
        (["ask", "PICTURE", "hi", "--keep-ratio", "1", "--keep-tokens", "4"], "not both"),
        (["ask", "PICTURE", "hi", "--overlay", "kept.xyz"], "--overlay kept.xyz"),
        (["ask", "PICTURE", "hi", "--overlay", "/dev/null/kept.png"], "/dev/null"),
        (["ask", "PICTURE", "hi", "--calibration", "absent.json"], "absent.json"),
        (["ask", "PICTURE", "hi", "--engine", "magic"], "magic"),
        (["ask", "PICTURE", "hi", "--choices", "yes"], "choices has 1 entries"),
        (["info", "absent"], "shipped models"),
    ],
)
def test_errors_are_one_line_that_says_what_to_do(picture, words, says):
    done = edge_atp(*[picture if word == "PICTURE" else word for word in words])
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_text_file_is_no_image(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    done = edge_atp("ask", path, "hi")
    assert done.returncode == 2
    assert "not an image" in done.stderr


def test_info_shows_the_parity_gates_and_json():
    done = edge_atp("info")
    assert done.returncode == 0, done.stderr
    assert "logits_max_abs" in done.stdout
    manifest = json.loads(edge_atp("info", "--json").stdout)
    assert np.prod(list(manifest["vision"]["patch_grid"].values())) == 256


def test_info_verify_reruns_the_golden_answers():
    done = edge_atp("info", "--verify")
    assert done.returncode == 0, done.stderr
    assert "golden answers on ort-" in done.stdout
    assert "passed" in done.stdout
