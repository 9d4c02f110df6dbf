"""The frames of the simulation, against the planner's geometry and against real pictures."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from edge_atp_ros.shelf import CameraModel, ShelfGeometry, rotation_matrix

from models.warehouse_tiny import vocabulary as v
from models.warehouse_tiny.render import SceneRenderer
from models.warehouse_tiny.scene import slot_centre_m
from models.warehouse_tiny.shapes import item_height_m
from models.warehouse_tiny.state import Camera
from sim.cell import HOME_M
from sim.cell_mjcf import ITEM_Y_M
from sim.frames import CAMERA_FRAME, camera_pose, focal_px, to_shelf, to_world
from sim.orders import cell_scene

PARAMETERS = "launch/params/sim.yaml"


@pytest.fixture(scope="module")
def parameters(request):
    path = request.config.rootpath / PARAMETERS
    return yaml.safe_load(path.read_text())["/**/pick_and_place"]["ros__parameters"]


@pytest.fixture(scope="module")
def geometry(parameters) -> ShelfGeometry:
    return ShelfGeometry(
        tuple(parameters["shelves"]),
        tuple(parameters["board_heights"]),
        parameters["num_columns"],
        parameters["slot_width"],
        parameters["slot_height"],
        parameters["item_depth"],
    )


@pytest.fixture(scope="module")
def camera(parameters) -> CameraModel:
    focal = focal_px(Camera(), 480)
    position, orientation = parameters["camera_position"], parameters["camera_orientation"]
    return CameraModel((focal, focal), (320.0, 240.0), tuple(position), tuple(orientation))


def test_the_shelf_frame_is_rep_103():
    np.testing.assert_allclose(to_shelf([-0.45, -0.5, 0.0]), 0.0)
    np.testing.assert_allclose(to_shelf([-0.45, 0.5, 0.0]), [1.0, 0.0, 0.0])  # into the rack
    np.testing.assert_allclose(to_shelf([0.55, -0.5, 2.0]), [0.0, -1.0, 2.0])  # right is -y
    point = np.array([0.3, -1.2, 2.5])
    np.testing.assert_allclose(to_world(to_shelf(point)), point)


def test_the_planners_parameters_are_the_cells(parameters, geometry, camera):
    for slot, place in enumerate(geometry.places()):
        x, z = slot_centre_m(slot)
        np.testing.assert_allclose(geometry.floor_centre(place), to_shelf([x, ITEM_Y_M, z]))
    position, orientation = camera_pose(Camera())
    np.testing.assert_allclose(camera.position_m, position, atol=1e-5)
    np.testing.assert_allclose(
        rotation_matrix(camera.orientation), rotation_matrix(orientation), atol=1e-5
    )
    np.testing.assert_allclose(parameters["home"], to_shelf(HOME_M))
    assert parameters["camera_frame"] == CAMERA_FRAME


def test_a_projected_slot_is_where_the_picture_shows_it(geometry, camera):
    """Each item's pixels lie within its slot's outline, and a pixel leads back to the item."""
    scene = cell_scene("test", 3)
    renderer = SceneRenderer()
    entities = renderer.render(scene, 640, 480).entities
    renderer.close()
    for slot, (place, item) in enumerate(zip(geometry.places(), scene.slots, strict=True)):
        if item is None:
            continue
        rows, columns = np.nonzero(entities == v.FIRST_ITEM + slot)
        outline = camera.project(geometry.face(place))
        centre = np.array([columns.mean(), rows.mean()])
        assert (outline.min(axis=0) < centre).all()
        assert (centre < outline.max(axis=0)).all()
        point = camera.on_plane(centre, geometry.item_depth_m)
        shift = [0.0, -item.offset_m[0], item_height_m(item) / 2]
        np.testing.assert_allclose(point, geometry.floor_centre(place) + shift, atol=0.12)


def test_a_rolled_camera_is_refused():
    with pytest.raises(ValueError, match="roll is 2"):
        camera_pose(Camera(roll=2.0))
