from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from models.warehouse_tiny.config import StageConfig, TrainConfig  # noqa: E402
from models.warehouse_tiny.heads import DenseHeads  # noqa: E402
from models.warehouse_tiny.model import build_model  # noqa: E402
from models.warehouse_tiny.packing import QuestionTokenizer  # noqa: E402
from models.warehouse_tiny.run import Run  # noqa: E402
from models.warehouse_tiny.scenes import SceneStore, prefetch  # noqa: E402
from models.warehouse_tiny.stage_language import LanguageStage  # noqa: E402
from models.warehouse_tiny.stage_vision import VisionStage  # noqa: E402
from models.warehouse_tiny.tokenizer import train_tokenizer  # noqa: E402

TINY = TrainConfig(
    scenes=8,
    vision=StageConfig(4, 2, 1e-3),
    language=StageConfig(4, 2, 1e-3),
    joint=StageConfig(4, 2, 1e-3),
    robust=StageConfig(4, 2, 1e-3, diversify=True),
    texts_per_scene=2,
    questions_per_scene=3,
)


def make_run(shard_folder: Path, out: Path, name: str) -> Run:
    tokenizer = QuestionTokenizer(train_tokenizer())
    store = SceneStore(shard_folder, "train", 8)
    model = build_model(0)
    heads = DenseHeads(model.config.vision_width)
    stage = (
        VisionStage(TINY, store, tokenizer)
        if name == "vision"
        else LanguageStage(name, TINY, store, tokenizer)
    )
    return Run(out, stage, TINY.stage(name), model, heads, [model.vision, model.llm, heads])


@pytest.mark.parametrize("name", ["vision", "language", "joint", "robust"])
def test_an_interrupted_run_resumes_to_the_same_weights(
    shard_folder: Path, tmp_path: Path, name: str
) -> None:
    straight = make_run(shard_folder, tmp_path / "a", name)
    assert straight.train() is True
    first = make_run(shard_folder, tmp_path / "b", name)
    assert first.train(until=2) is False
    second = make_run(shard_folder, tmp_path / "b", name)
    second.resume()
    assert second.step == 2
    assert second.train() is True
    before = build_model(0).state_dict()
    changed = 0
    for key, value in straight.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[key], value, rtol=0, atol=0, msg=key)
        changed += not torch.equal(value, before[key])
    assert changed > 20


def test_a_checkpoint_beyond_the_settings_is_refused(shard_folder: Path, tmp_path: Path) -> None:
    run = make_run(shard_folder, tmp_path, "vision")
    run.train()
    run.settings = replace(run.settings, steps=2)
    with pytest.raises(ValueError, match="is at step 4, the stage has 2"):
        run.resume()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch_scenes": 0}, "batch_scenes is 0"),
        ({"learning_rate": 3.0}, "learning_rate is 3.0"),
        ({"augment": 1.5}, "augment is 1.5"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY.vision, **changes)


def test_an_error_while_building_a_batch_reaches_the_caller() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise RuntimeError("bad scene")
        return step

    batches = prefetch(make, 0, 5)
    assert [next(batches), next(batches)] == [(0, 0), (1, 1)]
    with pytest.raises(RuntimeError, match="bad scene"):
        next(batches)
