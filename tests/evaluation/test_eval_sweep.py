"""Answering a data set with a real (random) model: arms, one encoding, resuming, processes."""

from dataclasses import replace

import numpy as np
import pytest

from edge_atp.config import PipelineConfig
from edge_atp.errors import ConfigError, DatasetError
from edge_atp.evaluation.answering import Answerer, Task
from edge_atp.evaluation.arms import Arm, dense_arm, engine_methods, plan_arms
from edge_atp.evaluation.conditions import Condition
from edge_atp.evaluation.records import RecordFile
from edge_atp.evaluation.sweep import plan_tasks, run_tasks
from edge_atp.pipeline import Pipeline
from edge_atp.types import Frame, Policy, PruneSpec, Query


@pytest.fixture(scope="session")
def config(tiny_model) -> PipelineConfig:
    return PipelineConfig(model=str(tiny_model), max_new_tokens=3, num_threads=1)


@pytest.fixture
def answerer(squares_dataset, config):
    answerer = Answerer(squares_dataset, config)
    yield answerer
    answerer.close()


def test_arms_are_dense_and_every_method_below_n():
    arms = plan_arms(["atp", "random"], [16, 4, 8], num_patches=16)
    assert [arm.name for arm in arms] == ["dense", "atp@8", "atp@4", "random@8", "random@4"]
    assert Arm("atp", 4, 0.25, "raw").name == "atp[alpha=0.25,raw]@4"
    assert arms[0].prune_spec() == PruneSpec(Policy.OFF)
    assert arms[2].prune_spec().max_visual_tokens == 4


def test_arms_that_cannot_run_are_refused():
    with pytest.raises(ConfigError, match="--keep has 17; this model has 1 to 16"):
        plan_arms(["atp"], [17], num_patches=16)
    with pytest.raises(ConfigError, match="unknown pruning method 'nothing'"):
        plan_arms(["nothing"], [4], num_patches=16)


def test_engine_methods_leave_out_what_needs_hooks():
    assert {"atp", "cls_topk", "random"} <= set(engine_methods())
    assert not {"none", "tome", "fastv"} & set(engine_methods())


def test_answers_are_those_of_the_pipeline(squares_dataset, config, answerer):
    """One shared encoding changes nothing about answer, mask or confidence."""
    image = squares_dataset.images[1]
    arms = (dense_arm(16), Arm("atp", 4), Arm("cls_topk", 4))
    task = answerer.answer(Task(image, (Condition(),), arms))
    assert [record.line for record in task.records] == [4, 5, 6]
    pipeline = Pipeline.load(config)
    example = squares_dataset.examples[3]
    frame = Frame(squares_dataset.read_image(image))
    for arm in arms:
        query = Query(example.question, prune=arm.prune_spec())
        alone = pipeline.answer(query, [frame])
        found = task.records[0].arms[arm.name]
        assert found.answer == alone.text
        assert found.num_kept == arm.num_kept
        assert found.confidence == pytest.approx(alone.confidence, abs=1e-5)
        assert found.target_kept == float(alone.masks[0].kept[example.target].mean())
        assert found.latency_s > 0.0
    pipeline.close()
    assert task.records[2].arms["dense"].target_kept is None


def test_random_keeps_other_patches_in_other_images(squares_dataset, answerer, monkeypatch):
    seen = []
    answer = Pipeline.answer

    def spy(self, query, frames, **options):
        result = answer(self, query, frames, **options)
        seen.append(tuple(np.flatnonzero(result.masks[0].kept)))
        return result

    monkeypatch.setattr(Pipeline, "answer", spy)
    for image in squares_dataset.images[:4]:
        answerer.answer(Task(image, (Condition(),), (Arm("random", 4),)))
    per_image = [set(seen[i : i + 3]) for i in range(0, 12, 3)]
    assert all(len(kept) == 1 for kept in per_image)
    assert len(set.union(*per_image)) > 1


def test_relevance_source_of_an_arm_overrides_the_models(squares_dataset, answerer):
    arms = (Arm("atp", 4, 1.0, "raw"), Arm("atp", 4, 1.0, "negated"))
    task = answerer.answer(Task(squares_dataset.images[0], (Condition(),), arms))
    kept = [record.arms[arm.name].target_kept for record in task.records[:2] for arm in arms]
    assert all(value in (0.0, 1.0) for value in kept)
    # The K most and the K least relevant of 16 patches share none, so at most one has the target.
    assert kept[0] + kept[1] <= 1.0


def test_tasks_share_encodings_where_only_the_wording_changes(squares_dataset):
    conditions = (Condition("blur", 1), Condition("blur", 2), Condition(variant="paraphrase"))
    arms = (dense_arm(16), Arm("atp", 4))
    tasks = plan_tasks(squares_dataset.images[:3], arms, conditions, arms[:1], 2)
    assert [task.key for task in tasks] == [
        *(f"images/square_00{i}.png clean" for i in range(3)),
        *(
            f"images/square_00{i}.png {name}"
            for i in range(2)
            for name in ("paraphrase", "blur@1", "blur@2")
        ),
    ]
    assert tasks[0].arms == arms
    assert tasks[-1].arms == arms[:1]


def test_long_answers_are_asked_about_the_first_images_only(squares_dataset, answerer):
    tasks = plan_tasks(squares_dataset.images, (dense_arm(16),), long_images=1)
    lines = [[record.line for record in answerer.answer(task).records] for task in tasks[:2]]
    assert lines == [[1, 2, 3], [4, 5]]


def _run(tmp_path, dataset, config, tasks, **options):
    with RecordFile(tmp_path / "records.jsonl", {"run": 1}, resume=True) as records:
        complete = run_tasks(tasks, dataset, config, records, progress=False, **options)
        return complete, list(records.finished)


def test_a_stopped_run_goes_on_where_it_was(tmp_path, squares_dataset, config, monkeypatch):
    tasks = plan_tasks(squares_dataset.images, (dense_arm(16),))
    assert _run(tmp_path, squares_dataset, config, tasks, max_seconds=1e-9) == (False, [])
    complete, first = _run(tmp_path, squares_dataset, config, tasks[:2])
    assert complete
    assert len(first) == 2
    asked = []
    answer = Answerer.answer
    monkeypatch.setattr(
        Answerer, "answer", lambda self, task: asked.append(task.image) or answer(self, task)
    )
    complete, finished = _run(tmp_path, squares_dataset, config, tasks)
    assert complete
    assert asked == list(squares_dataset.images[2:])
    assert [task.key for task in finished] == [task.key for task in tasks]


def test_processes_give_the_same_answers(tmp_path, squares_dataset, config):
    tasks = plan_tasks(squares_dataset.images[:3], (dense_arm(16), Arm("atp", 4)))
    _, alone = _run(tmp_path / "one", squares_dataset, config, tasks)
    _, shared = _run(tmp_path / "two", squares_dataset, config, tasks, processes=2)

    def answers(finished):
        return {
            (record.line, name): replace(arm, latency_s=0.0)
            for task in finished
            for record in task.records
            for name, arm in record.arms.items()
        }

    assert answers(shared) == answers(alone)


def test_a_model_of_another_grid_is_refused(tmp_path, tiny_model, squares):
    import json

    from edge_atp.evaluation.run import Settings, open_both

    index = json.loads((squares / "dataset.json").read_text()) | {"patch_grid": [2, 8]}
    (squares / "dataset.json").write_text(json.dumps(index))
    settings = Settings(squares, tmp_path, PipelineConfig(model=str(tiny_model)))
    with pytest.raises(DatasetError, match="patch_grid is 2 x 8, the model's is 4 x 4"):
        open_both(settings)
