"""The shipped bag gives the answers and masks that are committed beside it."""

from replay_run import BAG, QUESTIONS, replay

from edge_atp.replay.comparison import Tolerance, compare
from edge_atp.replay.questions import load_questions
from edge_atp.replay.results import load_results

REFERENCE = BAG / "reference" / "result.mcap"
# Another CPU or version of onnxruntime rounds differently: a patch on the edge of the budget may
# change places, 2 of 64 being an overlap of 62/66. Texts have to be the same.
LEAST_OVERLAP = 0.93
# int8 moves up to 3 of 64 across the edge (0.91).
LEAST_OVERLAP_INT8 = 0.8


def test_the_shipped_bag_still_gives_the_reference(tmp_path, typestore):
    out = tmp_path / "now.mcap"
    # In float32: what int8 rounds differently is no change of the code.
    assert replay(out, "--model", "warehouse_tiny:fp32", "--pictures", "none", "--check") == 0
    before, after = (load_results(path, typestore) for path in (REFERENCE, out))
    comparison = compare(before, after, Tolerance(mask=LEAST_OVERLAP))
    assert comparison.differences == (), (
        f"see `edge-atp diff`; after a change of the model or the bag, make it anew as"
        f" {REFERENCE.parent / 'README.md'} says"
    )
    assert comparison.num_paired == len(before.answers) > 100


def test_what_this_machine_runs_by_default_answers_the_same(tmp_path, typestore):
    """int8 on a CPU: other masks, to a few patches, and the same answers."""
    out = tmp_path / "now.mcap"
    assert replay(out, "--pictures", "none", "--check", "--every", 4) == 0
    before, after = (load_results(path, typestore) for path in (REFERENCE, out))
    comparison = compare(before, after, Tolerance(mask=LEAST_OVERLAP_INT8, unpaired=True))
    assert comparison.differences == ()
    assert comparison.num_paired > 30


def test_the_reference_asks_every_question_and_stays_small(typestore):
    asked = {answer.query_id for answer in load_results(REFERENCE, typestore).answers}
    assert asked == {question.query.query_id for question in load_questions(QUESTIONS)}
    assert REFERENCE.stat().st_size < 300_000
