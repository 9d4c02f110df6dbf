from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest

from models.warehouse_tiny import dataset, render
from models.warehouse_tiny import vocabulary as v
from models.warehouse_tiny.coverage import patch_coverage
from models.warehouse_tiny.preprocess import to_model_square
from models.warehouse_tiny.scene import sample_scene


@pytest.fixture(scope="module")
def renderer() -> Iterator[render.SceneRenderer]:
    try:
        made = render.SceneRenderer()
    except render.RendererUnavailableError as error:
        pytest.skip(f"no renderer: {error}")
    yield made
    made.close()


def test_the_same_state_gives_the_same_pixels(renderer: render.SceneRenderer) -> None:
    first = renderer.render(sample_scene("test", 1))
    renderer.render(sample_scene("shifted", 2))
    again = renderer.render(sample_scene("test", 1))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.entities, again.entities)
    assert first.image.std() > 10


def test_segmentation_shows_exactly_what_the_state_holds(renderer: render.SceneRenderer) -> None:
    for seed in range(5):
        state = sample_scene("test", seed)
        area = patch_coverage(renderer.render(state).entities).sum(1)
        for slot, item in enumerate(state.slots):
            if item is None:
                assert area[v.FIRST_ITEM + slot] == 0
        assert (area[v.HAZARD] > 0) == (state.hazard is not None)
        assert state.held is not None or area[v.HELD_ITEM] == 0


def test_coverage_counts_segmentation_pixels(renderer: render.SceneRenderer) -> None:
    entities = renderer.render(sample_scene("test", 4)).entities
    coverage = patch_coverage(entities)
    np.testing.assert_allclose(coverage.sum(0), 1.0, atol=1e-6)
    row, column = 7, 9
    patch = entities[row * 14 : row * 14 + 14, column * 14 : column * 14 + 14]
    for entity in np.unique(patch):
        share = (patch == entity).mean()
        assert coverage[entity, row * v.GRID + column] == pytest.approx(share)


def test_a_camera_frame_shows_the_same_square(renderer: render.SceneRenderer) -> None:
    """640x480, cropped and shrunk, is the 224x224 picture up to edges."""
    state = sample_scene("test", 6)
    small = renderer.render(state, 224, 224).image.astype(int)
    large = to_model_square(renderer.render(state, 640, 480).image).astype(int)
    assert np.abs(small - large).mean() < 6
    assert np.median(np.abs(small - large)) <= 2


def test_coverage_refuses_a_side_that_is_no_multiple_of_the_grid() -> None:
    with pytest.raises(ValueError, match="side is 100"):
        patch_coverage(np.zeros((100, 120), np.uint8))


def test_rendered_shards_are_kept_and_verified(
    renderer: render.SceneRenderer, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "_process_renderer", lambda: renderer)
    index = dataset.write_shard(tmp_path, "val", 0, scenes=2)
    shard = dataset.load_shard(index)
    assert shard.images.shape == (2, 224, 224, 3)
    written = index.stat().st_mtime_ns
    dataset.write_shard(tmp_path, "val", 0, scenes=2)
    assert index.stat().st_mtime_ns == written
    dataset.write_shard(tmp_path, "val", 0, scenes=3)
    assert dataset.load_shard(index).images.shape[0] == 3


def test_a_missing_gl_library_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(render.RendererUnavailableError, match="libosmesa6"):
        render.SceneRenderer()
