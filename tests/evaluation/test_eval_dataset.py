import json
import re
from pathlib import Path

import numpy as np
import pytest

from edge_atp.errors import DatasetError
from edge_atp.evaluation.dataset import LabelledDataset, file_sha256
from edge_atp.evaluation.dataset_writer import DatasetWriter
from edge_atp.evaluation.labels import Example
from edge_atp.types import PatchGrid


def rewrite_lines(folder: Path, change) -> None:
    """Change questions.jsonl and its checksum, as an editor of labels would."""
    path = folder / "questions.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("".join(line + "\n" for line in change(lines)))
    index = json.loads((folder / "dataset.json").read_text())
    index["files"]["questions.jsonl"] = file_sha256(path)
    index["num_questions"] = len(path.read_text().splitlines())
    (folder / "dataset.json").write_text(json.dumps(index))


def with_field(number: int, name: str, value):
    def change(lines):
        entry = json.loads(lines[number - 1]) | {name: value}
        return [*lines[: number - 1], json.dumps(entry), *lines[number:]]

    return change


def test_what_was_written_is_read_back(squares):
    dataset = LabelledDataset.open(squares)
    assert (dataset.split, dataset.seed, dataset.grid) == ("test", 7, PatchGrid(4, 4))
    assert len(dataset.images) == 6
    assert len(dataset.examples) == 18
    second = dataset.examples[3]
    assert second.line == 4
    assert second.answer == "green"
    assert np.flatnonzero(second.target).tolist() == [1]
    assert second.choices == ("red", "green", "blue")
    assert second.variants == {"paraphrase": ("which colour does the square have?",)}
    assert dataset.examples[5].target is None
    image = dataset.read_image(second.image)
    assert image[4, 12].tolist() == [0, 200, 0]


def test_limit_keeps_whole_images(squares):
    dataset = LabelledDataset.open(squares, limit=2)
    assert [example.line for example in dataset.examples] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [], "questions.jsonl: empty"),
        (lambda lines: [lines[0], "{broken", *lines[2:]], "questions.jsonl:2: not JSON"),
        (lambda lines: [*lines[:2], "[]", *lines[3:]], "questions.jsonl:3: expected an object"),
        (with_field(4, "answer", ""), "questions.jsonl:4: answer is ''"),
        (with_field(4, "question", 3), "questions.jsonl:4: question is 3"),
        (with_field(5, "family", "size"), "questions.jsonl:5: family is 'size'"),
        (with_field(1, "answer", "pink"), "questions.jsonl:1: answer 'pink' is not among choices"),
        (with_field(2, "target", "ff"), "questions.jsonl:2: target has 1 bytes"),
        (with_field(2, "target", "xyz"), "questions.jsonl:2: target is 'xyz'"),
        (with_field(2, "target", "0000"), "questions.jsonl:2: target marks no patch"),
        (with_field(2, "lable", "x"), "questions.jsonl:2: unknown field lable"),
        (with_field(2, "image", "images/none.png"), "questions.jsonl:2: image 'images/none.png'"),
        (lambda lines: [*lines[1:], lines[0]], "questions.jsonl:18: questions about"),
        (with_field(1, "variants", {"paraphrase": "one"}), "jsonl:1: variants.paraphrase is 'one'"),
    ],
)
def test_a_bad_line_is_named(squares, change, message):
    rewrite_lines(squares, change)
    with pytest.raises(DatasetError, match=message):
        LabelledDataset.open(squares)


def test_a_changed_image_is_refused(squares):
    path = squares / "images/square_002.png"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DatasetError, match=r"square_002.png: SHA-256"):
        LabelledDataset.open(squares)


def test_a_missing_image_is_named(squares):
    (squares / "images/square_004.png").unlink()
    with pytest.raises(DatasetError, match=r"square_004.png: No such file"):
        LabelledDataset.open(squares)


def test_an_edited_question_file_is_refused(squares):
    path = squares / "questions.jsonl"
    path.write_text(path.read_text().replace("green", "blue ", 1).replace('"blue "', '"blue"'))
    with pytest.raises(DatasetError, match=r"questions.jsonl: SHA-256"):
        LabelledDataset.open(squares)


def test_no_folder_says_what_a_data_set_is(tmp_path):
    with pytest.raises(DatasetError, match=r"is a folder with dataset.json"):
        LabelledDataset.open(tmp_path / "nothing")


def test_a_relative_folder_is_named_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match=re.escape(str(tmp_path / "dataset.json"))):
        LabelledDataset.open(".")


def test_another_version_is_refused(squares):
    index = json.loads((squares / "dataset.json").read_text()) | {"format_version": 9}
    (squares / "dataset.json").write_text(json.dumps(index))
    with pytest.raises(DatasetError, match="format_version is 9"):
        LabelledDataset.open(squares)


def test_writer_refuses_what_it_could_not_read_back(tmp_path, squares):
    grid = PatchGrid(2, 2)
    with pytest.raises(DatasetError, match="already holds a data set"):
        DatasetWriter(squares, "test", 0, grid, {"colour": "exact"})
    with pytest.raises(DatasetError, match="metric bleu"):
        DatasetWriter(tmp_path / "a", "test", 0, grid, {"colour": "bleu"})
    writer = DatasetWriter(tmp_path / "b", "test", 0, grid, {"colour": "exact"})
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(DatasetError, match=r"target has shape \(3,\)"):
        writer.add("x", image, [Example(0, "", "q", "a", "colour", np.ones(3, bool))])
    with pytest.raises(DatasetError, match="nothing to evaluate"):
        DatasetWriter(tmp_path / "c", "test", 0, grid, {"colour": "exact"}).finish()
