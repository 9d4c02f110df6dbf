"""Closed answer sets in an evaluation: where they come from, and that answers stay inside."""

from dataclasses import replace

from edge_atp.config import PipelineConfig
from edge_atp.evaluation.answer_sets import AnswerSets
from edge_atp.evaluation.answering import Answerer, Task
from edge_atp.evaluation.arms import Arm, dense_arm
from edge_atp.evaluation.conditions import Condition

FAMILIES = {"colour": "exact", "where": "exact", "caption": "token_f1"}


def test_the_questions_own_choices_go_before_the_familys_answers(squares_dataset):
    sets = AnswerSets(squares_dataset.examples, FAMILIES, 64)
    colour, where, caption = squares_dataset.examples[:3]
    assert sets.of(colour) == ("red", "green", "blue")
    assert sets.of(where) == tuple(sorted(f"row {n // 4}, column {n % 4}" for n in range(6)))
    assert sets.of(caption) == ()


def test_a_family_with_too_many_answers_is_asked_open(squares_dataset):
    sets = AnswerSets(squares_dataset.examples, FAMILIES, max_choices=5)
    assert sets.of(squares_dataset.examples[1]) == ()
    assert sets.of(replace(squares_dataset.examples[1], choices=("a", "b"))) == ("a", "b")


def test_closed_arms_answer_from_the_set_with_its_probability(squares_dataset, tiny_model):
    config = PipelineConfig(model=str(tiny_model), max_new_tokens=3, num_threads=1)
    answerer = Answerer(squares_dataset, config)
    arms = (dense_arm(16), Arm("atp", 4))
    closed = tuple(replace(arm, closed=True) for arm in arms)
    assert [arm.name for arm in closed] == [arm.name for arm in arms]
    found = answerer.answer(Task(squares_dataset.images[0], (Condition(),), closed)).records
    free = answerer.answer(Task(squares_dataset.images[0], (Condition(),), arms)).records
    answerer.close()
    for arm in arms:
        assert found[0].arms[arm.name].answer in ("red", "green", "blue")
        assert found[1].arms[arm.name].answer.startswith("row ")
        assert found[2].arms[arm.name] == replace(
            free[2].arms[arm.name], latency_s=found[2].arms[arm.name].latency_s
        )
        assert 1 / 3 <= found[0].arms[arm.name].confidence <= 1
    # The random model says none of them by itself.
    assert free[0].arms["dense"].answer not in ("red", "green", "blue")
