from __future__ import annotations

import pytest

from models.warehouse_tiny import vocabulary as v
from models.warehouse_tiny.scene import sample_scene
from models.warehouse_tiny.sequence import sequence
from models.warehouse_tiny.state import Item, SceneState


@pytest.mark.parametrize("split", v.SPLITS)
def test_a_scene_follows_from_split_and_seed(split: str) -> None:
    assert sample_scene(split, 5) == sample_scene(split, 5)
    assert sample_scene(split, 5) != sample_scene(split, 6)


def test_splits_do_not_share_scenes() -> None:
    scenes = [sample_scene(split, 0) for split in v.SPLITS]
    assert len({scene.slots for scene in scenes}) == len(v.SPLITS)


def test_shifted_cameras_lights_and_textures_lie_outside_training() -> None:
    for seed in range(60):
        train, shifted = sample_scene("train", seed).look, sample_scene("shifted", seed).look
        assert abs(train.camera.azimuth - 90) <= 8 < abs(shifted.camera.azimuth - 90) + 1e-9
        assert -14 <= train.camera.elevation <= -4
        assert not -14 < shifted.camera.elevation < -4
        assert not 0.4 < shifted.light_diffuse < 0.75
        assert train.texture_kind in (0, 1)
        assert shifted.texture_kind == 2


@pytest.mark.parametrize(("split", "seed", "named"), [("tset", 0, "tset"), ("test", -1, "-1")])
def test_bad_split_or_seed_is_named(split: str, seed: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        sample_scene(split, seed)


def test_states_refuse_unknown_things() -> None:
    with pytest.raises(ValueError, match="barrel"):
        Item("barrel", "red")
    with pytest.raises(ValueError, match="pink"):
        Item("box", "pink")
    with pytest.raises(ValueError, match="3 entries"):
        SceneState(slots=(None, None, None))
    with pytest.raises(ValueError, match="puddle"):
        SceneState(slots=(None,) * v.NUM_SLOTS, hazard="puddle")


def test_a_sequence_places_an_item_takes_another_and_lets_a_person_in() -> None:
    frames = list(sequence(3, 60))
    assert frames == list(sequence(3, 60))
    first, middle, last = frames[0], frames[30], frames[-1]
    assert first.held is not None
    assert middle.held is None
    assert sum(map(bool, middle.slots)) == sum(map(bool, first.slots)) + 1
    assert last.held is not None
    assert sum(map(bool, last.slots)) == sum(map(bool, first.slots))
    assert (first.hazard, last.hazard) == (None, "person")
    assert len({frame.look for frame in frames}) == 1


def test_a_sequence_needs_two_frames() -> None:
    with pytest.raises(ValueError, match="num_frames is 1"):
        next(sequence(0, 1))
