"""Official files in small, scores worked out by hand."""

import json
import math

import cv2
import numpy as np
import pytest

from edge_atp.cli import main
from edge_atp.errors import DatasetError, ShapeError
from edge_atp.evaluation.benchmarks import coco_captions, gqa, vqav2
from edge_atp.evaluation.benchmarks.cider import cider_d, tokenise
from edge_atp.evaluation.benchmarks.vqa_text import normalise


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def people(*answers: str) -> list[dict]:
    return [
        {"answer": answer, "answer_confidence": "yes", "answer_id": number}
        for number, answer in enumerate(answers, start=1)
    ]


@pytest.fixture
def vqa_files(tmp_path):
    questions = {
        "info": {},
        "task_type": "Open-Ended",
        "data_type": "mscoco",
        "data_subtype": "val2014",
        "questions": [
            {"image_id": 42, "question": "How many boxes?", "question_id": 42001},
            {"image_id": 42, "question": "What colour is it?", "question_id": 42002},
            {"image_id": 7, "question": "Is it open?", "question_id": 7000},
        ],
    }
    annotations = {
        "info": {},
        "data_subtype": "val2014",
        "annotations": [
            {
                "question_id": 42001,
                "image_id": 42,
                "question_type": "how many",
                "answer_type": "number",
                "multiple_choice_answer": "2",
                "answers": people(*["2"] * 2, *["two boxes"] * 8),
            },
            {
                "question_id": 42002,
                "image_id": 42,
                "question_type": "what color",
                "answer_type": "other",
                "multiple_choice_answer": "red",
                "answers": people(*["red"] * 3, *["dark red"] * 7),
            },
            {
                "question_id": 7000,
                "image_id": 7,
                "question_type": "is it",
                "answer_type": "yes/no",
                "multiple_choice_answer": "yes",
                "answers": people(*["yes"] * 10),
            },
        ],
    }
    return write(tmp_path / "questions.json", questions), write(tmp_path / "a.json", annotations)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The Red Box.", "red box"),
        ("Two", "2"),
        ("none", "0"),
        ("1,000 boxes", "1000 boxes"),
        ("3.5", "3.5"),
        ("red-ish/blue", "red ish blue"),
        ("red, blue", "red blue"),
        ("10:30", "10:30"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("twas", "'twas"),
        ("somebody'd", "somebodyd"),
        ("well", "well"),  # not "we'll"
        ("man's hat!", "man's hat "),
    ],
)
def test_answer_normalisation(answer, expected):
    assert normalise(answer) == " ".join(expected.split())


@pytest.mark.parametrize(("agreeing", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1)])
def test_leave_one_out_accuracy(agreeing, accuracy):
    references = ["red"] * agreeing + ["blue"] * (10 - agreeing)
    assert vqav2.vqa_accuracy("a red.", references) == pytest.approx(accuracy)


def test_unanimous_answers_are_compared_as_they_are():
    assert vqav2.vqa_accuracy("two", ["two"] * 10) == 1.0
    assert vqav2.vqa_accuracy("2", ["two"] * 10) == 0.0
    assert vqav2.vqa_accuracy("yes\n", ["yes"] * 10) == 1.0


def test_vqav2_files_are_read_and_scored(tmp_path, vqa_files):
    questions, annotations = vqa_files
    items = vqav2.read_items(questions)
    assert items[0].key == 42001
    assert items[0].image == "COCO_val2014_000000000042.jpg"
    assert items[0].question.startswith("How many boxes?\nAnswer the question using")
    answers = {42001: "Two.", 42002: "red", 7000: "no"}
    results = write(tmp_path / "results.json", vqav2.to_results(answers))
    assert vqav2.read_results(results) == answers
    scores = vqav2.score(annotations, answers)
    # 2 of 10 agree: 0.6; 3 of 10: 0.9; none: 0.
    assert scores["overall"] == pytest.approx(50.0)
    assert scores["per_answer_type"] == pytest.approx({"number": 60, "other": 90, "yes/no": 0})
    assert scores["per_question_type"]["how many"] == pytest.approx(60.0)
    assert vqav2.score(annotations, {42002: "red"}, partial=True)["questions"] == 1


def test_results_must_fit_the_questions(tmp_path, vqa_files):
    _, annotations = vqa_files
    with pytest.raises(DatasetError, match="2 of 3 answers are missing, such as 42002"):
        vqav2.score(annotations, {42001: "2"})
    with pytest.raises(DatasetError, match="9 was answered, but is not asked"):
        vqav2.score(annotations, {42001: "2", 42002: "x", 7000: "y", 9: "z"})
    with pytest.raises(DatasetError, match="answers are missing"):
        vqav2.score(annotations, {}, partial=True)


def test_malformed_files_name_the_entry(tmp_path):
    empty = tmp_path / "empty.json"
    empty.write_text(" ")
    with pytest.raises(DatasetError, match=r"empty.json: empty file"):
        vqav2.read_items(empty)
    with pytest.raises(DatasetError, match="cannot be read"):
        gqa.read_items(tmp_path / "no.json")
    broken = write(tmp_path / "q.json", {"questions": [{"question_id": "1", "image_id": 3}]})
    with pytest.raises(DatasetError, match="entry 1: question_id is '1'; expected int"):
        vqav2.read_items(broken)
    with pytest.raises(DatasetError, match="questions must be a list of objects"):
        vqav2.read_items(write(tmp_path / "r.json", {"questions": 3}))
    with pytest.raises(DatasetError, match="question 5: 'x' is no object"):
        gqa.read_items(write(tmp_path / "s.json", {"5": "x"}))
    with pytest.raises(DatasetError, match="entry 1: caption is 3; expected str"):
        coco_captions.read_results(write(tmp_path / "t.json", [{"image_id": 1, "caption": 3}]))


def gqa_question(answer: str, structural: str, balanced: bool = True) -> dict:
    return {
        "question": "Which side is the bag on?",
        "answer": answer,
        "imageId": "n161313",
        "isBalanced": balanced,
        "types": {"structural": structural, "semantic": "rel", "detailed": "relS"},
        "groups": {"global": None, "local": "x"},
    }


def test_gqa_counts_balanced_questions_literally(tmp_path):
    questions = write(
        tmp_path / "gqa.json",
        {
            "1": gqa_question("left", "query"),
            "2": gqa_question("yes", "verify"),
            "3": gqa_question("no", "logical"),
            "4": gqa_question("no", "verify", balanced=False),
        },
    )
    assert gqa.read_items(questions)[0].image == "n161313.jpg"
    written = gqa.to_results({"1": " Left.", "2": "yes", "3": "Yes", "4": "yes"})
    assert written[0] == {"questionId": "1", "prediction": "left"}
    answers = gqa.read_results(write(tmp_path / "results.json", written))
    scores = gqa.score(questions, answers)
    assert scores["overall"] == pytest.approx(200 / 3)
    assert (scores["open"], scores["binary"]) == (100.0, 50.0)
    assert scores["per_structural_type"] == {"logical": 0.0, "query": 100.0, "verify": 100.0}
    assert scores["questions"] == 3
    assert gqa.score(questions, {**answers, "1": "Left"})["open"] == 0.0


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A man's dog isn't riding, really!", "a man 's dog is n't riding really"),
        ("two-story building & 3,000 people", "two-story building & 3,000 people"),
        ("He cannot see 10:30 a.m. (now)...", "he can not see 10:30 a.m. -lrb- now -rrb-"),
        ('the "stop" sign; o\u2019clock', "the stop sign o'clock"),
        ("1/2 a sandwich and/or a 3-D tv", "1/2 a sandwich and/or a 3-d tv"),
    ],
)
def test_treebank_tokens(caption, tokens):
    assert tokenise(caption) == tokens.split()


def test_cider_by_hand():
    references = [["a red box"], ["a blue drum"]]
    # Image 1: the reference itself; "a" weighs 0, cosine 1 for n = 1, 2, 3, no 4-gram.
    # Image 2: "red" and "drum" against "blue" and "drum": cosine 1/2 for n = 1, else 0.
    assert cider_d(["A red box.", "a red drum"], references) == pytest.approx([7.5, 1.25])
    # Two words more: 4 equal weights against 2, one shared; 4 bigrams against 2.
    longer = cider_d(["a red box", "a red drum here now"], references)[1]
    assert longer == pytest.approx(10 / 4 / (2 * math.sqrt(2)) * math.exp(-4 / 72))
    # A repeated word counts no more often than the reference has it: 2 red clipped to 1, norm 2.
    repeated = cider_d(["red red", "a blue drum"], references)[0]
    assert repeated == pytest.approx(10 / 4 * (1 / (2 * math.sqrt(2))) * math.exp(-1 / 72))


def test_cider_averages_references_and_needs_one():
    two = cider_d(["a red box", "a drum"], [["a red box", "zebra"], ["a drum"]])[0]
    # One reference matches (7.5), the other shares nothing.
    assert two == pytest.approx(7.5 / 2)
    assert cider_d(["a box"], [["a box"]]) == [0.0]
    with pytest.raises(ShapeError, match="at least one reference"):
        cider_d(["a"], [[]])


def test_coco_files_are_read_and_scored(tmp_path):
    annotations = write(
        tmp_path / "captions.json",
        {
            "images": [{"id": 1, "file_name": "one.png"}, {"id": 2, "file_name": "two.png"}],
            "annotations": [
                {"id": 10, "image_id": 1, "caption": "A red box."},
                {"id": 11, "image_id": 2, "caption": "A blue drum"},
            ],
        },
    )
    assert [item.key for item in coco_captions.read_items(annotations)] == [1, 2]
    results = write(
        tmp_path / "results.json", coco_captions.to_results({1: "a red box", 2: "a red drum"})
    )
    scores = coco_captions.score(annotations, coco_captions.read_results(results))
    assert scores["overall"] == pytest.approx((7.5 + 1.25) / 2)


def test_the_command_answers_and_scores(tmp_path, vqa_files, tiny_model, capsys):
    questions, annotations = vqa_files
    for image_id in (42, 7):
        image = np.full((40, 50, 3), image_id * 5, np.uint8)
        cv2.imwrite(str(tmp_path / f"COCO_val2014_{image_id:012d}.jpg"), image)
    results = tmp_path / "out" / "results.json"
    arguments = ["score", "vqav2", "--questions", str(questions), "--results", str(results)]
    arguments += ["--annotations", str(annotations), "--json"]
    model = ["--images", str(tmp_path), "--model", str(tiny_model), "--max-new-tokens", "2"]
    assert main([*arguments, *model, "--method", "cls_topk", "--keep-tokens", "4"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["questions"] == 3
    written = json.loads(results.read_text())
    assert [entry["question_id"] for entry in written] == [42001, 42002, 7000]
    assert main(arguments) == 0
    assert main([*arguments, "--limit", "2"]) == 2
    assert "--limit needs --images" in capsys.readouterr().err


def test_the_command_names_a_missing_image(tmp_path, vqa_files, tiny_model, capsys):
    questions, annotations = vqa_files
    arguments = ["score", "vqav2", "--questions", str(questions), "--results", "r.json"]
    arguments += ["--annotations", str(annotations), "--model", str(tiny_model)]
    assert main([*arguments, "--images", str(tmp_path / "nowhere")]) == 2
    assert "COCO_val2014_000000000007.jpg: No such file" in capsys.readouterr().err
