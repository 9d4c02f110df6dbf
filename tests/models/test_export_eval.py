"""A split as a labelled data set that ``edge-atp evaluate`` reads."""

from __future__ import annotations

import numpy as np
import pytest
from flat_scenes import flat_coverage

from edge_atp.evaluation.dataset import LabelledDataset
from models.warehouse_tiny import export_eval, wordings
from models.warehouse_tiny import vocabulary as v
from models.warehouse_tiny.export_eval import Job, make_scene, write_dataset
from models.warehouse_tiny.facts import FAMILIES
from models.warehouse_tiny.render import RenderedFrame
from models.warehouse_tiny.scene import sample_scene


class FlatRenderer:
    """Draws nothing but knows where everything is: entity maps of ``flat_coverage``."""

    def render(self, state, width, height, segmentation_scale=1.0):  # type: ignore[no-untyped-def]
        side = round(height * segmentation_scale)
        entity = flat_coverage(state).argmax(0).reshape(v.GRID, v.GRID).astype(np.uint8)
        square = np.kron(entity, np.ones((side // v.GRID, side // v.GRID), np.uint8))
        margin = (round(width * segmentation_scale) - side) // 2
        entities = np.pad(square, ((0, 0), (margin, margin)))
        return RenderedFrame(np.full((height, width, 3), 60, np.uint8), entities)


@pytest.fixture(autouse=True)
def flat_renderer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_eval, "_renderer", FlatRenderer)


@pytest.mark.parametrize(("width", "height"), [(640, 480), (224, 224)])
def test_what_is_written_can_be_evaluated(tmp_path, width, height):  # type: ignore[no-untyped-def]
    jobs = [Job("test", seed, width, height, 1) for seed in (5, 6, 7)]
    dataset = LabelledDataset.open(write_dataset(tmp_path / "set", jobs))
    assert (dataset.split, dataset.seed, len(dataset.images)) == ("test", 5, 3)
    assert dataset.grid.num_patches == v.NUM_PATCHES
    assert set(dataset.families) == set(FAMILIES)
    assert dataset.families["caption"] == "token_f1"
    assert dataset.read_image(dataset.images[0]).shape == (height, width, 3)
    assert len({example.family for example in dataset.examples}) >= 10


def test_targets_are_the_patches_of_what_is_asked_about():  # type: ignore[no-untyped-def]
    _, _, examples = make_scene(Job("test", 5, 640, 480, 1))
    state = sample_scene("test", 5)
    coverage = flat_coverage(state)
    shown = {int(e) for e in coverage.argmax(0)} - {v.BACKGROUND}
    for example in examples:
        if example.target is not None:
            covered = set(coverage.argmax(0)[example.target].tolist())
            assert covered <= shown
    holding = next(e for e in examples if e.family == "gripper")
    entity = v.HELD_ITEM if state.held else v.GRIPPER
    assert np.array_equal(holding.target, coverage[entity] >= 0.5)


def test_variants_are_wordings_that_training_never_saw():
    _, _, examples = make_scene(Job("test", 5, 224, 224, 2))
    _, _, again = make_scene(Job("test", 5, 224, 224, 2))
    assert [e.to_json() for e in examples] == [e.to_json() for e in again]
    for example in examples:
        (disturbed,) = example.variants["distractor"]
        assert example.question in disturbed
        assert any(d in disturbed for d in wordings.HELD_OUT_DISTRACTORS)
        (reworded,) = example.variants["paraphrase"]
        assert reworded != example.question
