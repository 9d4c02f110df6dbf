"""The rack's geometry, what a mask says about a slot, and what the looker believes."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from edge_atp_msgs.msg import Answer, PatchMask, PatchMaskArray
from edge_atp_ros.answer_text import Item, Place, parse_slots
from edge_atp_ros.client import Reply
from edge_atp_ros.localizing import evidence
from edge_atp_ros.looking import Belief, HazardError, Looker, SceneError, UngroundedAnswerError
from edge_atp_ros.orders import Order, parse_order
from edge_atp_ros.shelf import CameraModel, ShelfGeometry

from edge_atp.errors import ConfigError

SHELF = ShelfGeometry(("top", "bottom"), (2.0, 1.0), 4, 1.0, 0.9, item_depth_m=0.5)
# Looking straight into the rack (z forward = shelf x), 8 m before the items' plane, 100 px a metre.
CAMERA = CameraModel((800.0, 800.0), (240.0, 240.0), (-7.5, 0.0, 2.0), (-0.5, 0.5, -0.5, 0.5))
PLACE = Place("top", 2)  # y 0 to 1 m, z 2 to 2.9 m: columns 140 to 240, rows 150 to 240


def make_mask(kept: np.ndarray, scores: np.ndarray | None = None) -> PatchMask:
    mask = PatchMask(image_width=480, image_height=480, grid_rows=16, grid_cols=16)
    mask.roi.width = mask.roi.height = 480
    mask.kept = np.packbits(kept.reshape(-1)).tolist()
    if scores is not None:
        mask.scores = scores.reshape(-1).tolist()
    return mask


def patches(rows: slice, columns: slice) -> np.ndarray:
    kept = np.zeros((16, 16), dtype=bool)
    kept[rows, columns] = True
    return kept


def test_places_lie_from_the_left_and_from_the_top():
    places = SHELF.places()
    assert places[0] == Place("top", 1)
    assert len(places) == 8
    np.testing.assert_allclose(SHELF.floor_centre(places[0]), [0.5, 1.5, 2.0])
    np.testing.assert_allclose(SHELF.floor_centre(Place("bottom", 4)), [0.5, -1.5, 1.0])
    with pytest.raises(ConfigError, match="place is middle shelf, slot 1"):
        SHELF.floor_centre(Place("middle", 1))


def test_projection_and_its_inverse_agree():
    corners = SHELF.face(PLACE)
    pixels = CAMERA.project(corners)
    np.testing.assert_allclose(pixels, [[140, 150], [240, 150], [240, 240], [140, 240]])
    for corner, pixel in zip(corners, pixels, strict=True):
        np.testing.assert_allclose(CAMERA.on_plane(pixel, 0.5), corner, atol=1e-9)
    assert np.isnan(CAMERA.project(np.array([[-9.0, 0.0, 2.0]]))).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ShelfGeometry(("top",), (1.0, 2.0), 4, 1, 1, 0), "board_heights has 2 values"),
        (lambda: ShelfGeometry(("top",), (1.0,), 0, 1, 1, 0), "num_columns is 0"),
        (lambda: CameraModel((1, 1), (0, 0), (0.0, 0.0), (0, 0, 0, 1)), "camera_position is"),
        (lambda: CameraModel((1, 1), (0, 0), (0, 0, 0), (0, 0, 0, 2)), "camera_orientation is"),
    ],
)
def test_geometry_that_cannot_be_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_evidence_counts_the_kept_patches_of_the_slot_alone():
    everything = evidence(make_mask(np.ones((16, 16), bool)), PLACE, SHELF, CAMERA)
    assert everything.kept_share == 1.0
    assert everything.shift_m == pytest.approx(0.0)
    nothing = evidence(make_mask(patches(slice(0, 4), slice(0, 16))), PLACE, SHELF, CAMERA)
    assert (nothing.kept_share, nothing.shift_m) == (0.0, 0.0)
    outside = evidence(make_mask(np.ones((16, 16), bool)), Place("top", 1), SHELF, CAMERA)
    assert outside.kept_share == 1.0


def test_evidence_leans_to_the_side_where_it_lies():
    # Columns 5 to 7 are the slot's; 5 is its left edge, and left is +y.
    left = evidence(make_mask(patches(slice(5, 8), slice(5, 6))), PLACE, SHELF, CAMERA)
    right = evidence(make_mask(patches(slice(5, 8), slice(7, 8))), PLACE, SHELF, CAMERA)
    assert left.kept_share == pytest.approx(1 / 3)
    assert left.shift_m == pytest.approx(right.shift_m + 0.6)

    scores = np.zeros((16, 16))
    scores[:, 5], scores[:, 7] = 3.0, 1.0
    kept = patches(slice(5, 8), slice(5, 8))
    leaning = evidence(make_mask(kept, scores), PLACE, SHELF, CAMERA)
    assert right.shift_m < leaning.shift_m < left.shift_m
    assert leaning.shift_m == pytest.approx(right.shift_m + 0.75 * 0.6)


class ScriptedClient:
    """Answers from a table, with one mask for all."""

    def __init__(self, texts: dict[str, str], kept: np.ndarray) -> None:
        self.texts, self.kept, self.asked = texts, kept, []

    def ask(self, question: str, **options) -> Reply:
        self.asked.append((question, options))
        masks = PatchMaskArray(masks=[make_mask(self.kept)])
        return Reply(Answer(text=self.texts[question]), masks, question)

    def ask_choice(self, question: str, choices, **options) -> Reply:
        return self.ask(question, choices=choices, **options)


QUESTIONS = {
    "what hazard is on the floor?": "none",
    "what is the gripper holding?": "red box",
    "where is the red box?": "top shelf, slot 2",
    "which slots are free on the top shelf?": "2, 4",
    "is slot 2 on the top shelf empty?": "yes",
}


BELIEF = Belief()


def looker(kept: np.ndarray | None = None, belief: Belief = BELIEF, **answers: str) -> Looker:
    texts = dict(QUESTIONS)
    for question in texts:
        for start, text in answers.items():
            if question.startswith(start):
                texts[question] = text
    client = ScriptedClient(texts, np.ones((16, 16), bool) if kept is None else kept)
    return Looker(client, SHELF, lambda: CAMERA, belief, lambda: 77)


def test_a_looker_says_where_and_what():
    look = looker(kept=patches(slice(5, 8), slice(5, 7)))
    look.require_clear_floor()
    assert look.holding() == Item("red", "box")
    found = look.find(Item("red", "box"))
    assert found.place == PLACE
    assert found.point_m[0] == 0.5
    assert found.point_m[1] == pytest.approx(0.5 + 0.25 * 0.15)  # a quarter of the way
    free = look.free_slot("top", near=Place("bottom", 1))
    assert free.place == PLACE
    np.testing.assert_allclose(free.point_m, SHELF.floor_centre(PLACE))
    assert all(options["newer_than_ns"] == 77 for _, options in look._vlm.asked)
    assert look._vlm.asked[-1][1]["choices"] == ("yes", "no")
    plain = looker(belief=Belief(use_choices=False))
    plain.require_free(PLACE)
    assert "choices" not in plain._vlm.asked[0][1]


def test_a_shift_is_limited():
    found = looker(patches(slice(5, 8), slice(5, 6)), Belief(0.0, 1.0, max_shift_m=0.1)).find(
        Item("red", "box")
    )
    assert found.point_m[1] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("answers", "look", "error", "message"),
    [
        ({"what hazard": "person"}, lambda k: k.require_clear_floor(), HazardError, "person on"),
        ({"what hazard": "a dog"}, lambda k: k.require_clear_floor(), HazardError, "'a dog'"),
        ({"what is the": "a thing"}, lambda k: k.holding(), SceneError, "'a thing'"),
        ({"where": "not found"}, lambda k: k.find(Item("red", "box")), SceneError, "no red box"),
        ({"which": "none"}, lambda k: k.free_slot("top", PLACE), SceneError, "no free slot"),
        ({"is slot": "no"}, lambda k: k.free_slot("top", PLACE), SceneError, "slot 2 is not free"),
    ],
)
def test_what_forbids_the_next_step_is_said(answers, look, error, message):
    with pytest.raises(error, match=message):
        look(looker(**answers))


def test_an_answer_about_a_slot_that_was_not_looked_at_is_refused():
    with pytest.raises(UngroundedAnswerError, match="only 0% of top shelf, slot 2 was looked at"):
        looker(kept=patches(slice(10, 16), slice(0, 16))).find(Item("red", "box"))


@pytest.mark.parametrize(
    ("text", "slots"), [("1, 3", (1, 3)), ("4", (4,)), ("none", ()), ("1, 5", ()), ("", ())]
)
def test_free_slots_are_parsed_exactly(text, slots):
    assert parse_slots(text) == slots


def test_orders_are_parsed_exactly():
    order = parse_order("Move the red box to the top shelf.", ("top", "bottom"))
    assert order == Order(Item("red", "box"), "top")
    for text in ("move the red box", "move the red cat to the top shelf", str(order) + " now"):
        with pytest.raises(ConfigError, match="order is"):
            parse_order(text, ("top", "bottom"))
    with pytest.raises(ConfigError, match="one of bottom"):
        parse_order(str(order), ("bottom",))
