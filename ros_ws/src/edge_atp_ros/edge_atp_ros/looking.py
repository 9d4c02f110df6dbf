"""What a pick-and-place planner asks before it moves, and when it believes the answer.

Every answer must pass the client's guard (fresh, sure, complete, of the right camera, taken after
the arm came to rest) and, where it names a slot, be grounded: the model must have kept the patches
of that slot. Whatever does not pass is an error with the reason; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from edge_atp_msgs.msg import PruneConfig

from edge_atp.errors import EdgeAtpError
from edge_atp_ros.answer_text import (
    Item,
    Place,
    parse_hazard,
    parse_item,
    parse_place,
    parse_slots,
)
from edge_atp_ros.client import Reply, UnusableAnswerError, VlmClient
from edge_atp_ros.client_request import AskOptions
from edge_atp_ros.localizing import evidence
from edge_atp_ros.shelf import CameraModel, Points, ShelfGeometry

HAZARD = "what hazard is on the floor?"
HOLDING = "what is the gripper holding?"


class SceneError(EdgeAtpError):
    """What the cell looks like forbids the next step."""


class HazardError(SceneError):
    """Somebody or something is on the floor: nothing may move."""


class UngroundedAnswerError(UnusableAnswerError):
    """The answer names a slot that the model has not looked at."""


@dataclass(frozen=True)
class Belief:
    """What the looker believes.

    min_kept_share: least share of a named slot's patches that must have been kept.
    evidence_weight: how far the mask's evidence shifts a goal from the slot's middle, [0, 1].
    max_shift_m: the most it shifts it.
    use_choices: ask yes-or-no questions as closed answer sets.
    """

    min_kept_share: float = 0.5
    evidence_weight: float = 0.25
    max_shift_m: float = 0.1
    use_choices: bool = True


@dataclass(frozen=True)
class Sighting:
    """A slot, and where on its board to reach: (3,) in the shelf frame, at board height."""

    place: Place
    point_m: Points


class Looker:
    """Asks about the cell.

    Args:
        vlm: with the guard that every answer must pass.
        shelf, camera: the rack and the camera that sees it.
        belief: see ``Belief``.
        newer_than_ns: ROS time since which the arm rests; older frames do not count.
        prune: how the questions are pruned; None: the VLM node's default.
    """

    def __init__(
        self,
        vlm: VlmClient,
        shelf: ShelfGeometry,
        camera: Callable[[], CameraModel],
        belief: Belief,
        newer_than_ns: Callable[[], int],
        prune: PruneConfig | None = None,
    ) -> None:
        self._vlm = vlm
        self._shelf = shelf
        self._camera = camera
        self._belief = belief
        self._newer_than_ns = newer_than_ns
        self._prune = prune

    def require_clear_floor(self) -> None:
        """Raises HazardError: anything but a clear `none` was answered."""
        reply = self._ask(HAZARD)
        if (hazard := parse_hazard(reply.text)) is not None:
            raise HazardError(f"{hazard} on the floor")
        if reply.text.lower() != "none":
            raise HazardError(f"{HAZARD!r} was answered {reply.text!r}; not moving without a none")

    def holding(self) -> Item | None:
        """What the gripper holds."""
        reply = self._ask(HOLDING)
        item = parse_item(reply.text)
        if item is None and reply.text.lower() != "nothing":
            raise SceneError(
                f"{HOLDING!r} was answered {reply.text!r}; expected an item or nothing"
            )
        return item

    def find(self, item: Item) -> Sighting:
        """Where an item stands.

        Raises:
            SceneError: nowhere on the rack.
        """
        reply = self._ask(f"where is the {item}?")
        place = parse_place(reply.text)
        if place is None:
            raise SceneError(f"no {item} on the rack: {reply.text!r}")
        return self._sighting(reply, place)

    def free_slot(self, shelf: str, near: Place) -> Sighting:
        """A free slot of a shelf, the one nearest to a place; confirmed by a second question.

        Raises:
            SceneError: none is free, or the two answers contradict each other.
        """
        free = parse_slots(self._ask(f"which slots are free on the {shelf} shelf?").text)
        if not free:
            raise SceneError(f"no free slot on the {shelf} shelf")
        return self.require_free(Place(shelf, min(free, key=lambda n: (abs(n - near.slot), n))))

    def require_free(self, place: Place) -> Sighting:
        """The sighting of a slot that must be free.

        Raises:
            SceneError: it is not.
        """
        question = f"is slot {place.slot} on the {place.shelf} shelf empty?"
        options = self._options()
        if self._belief.use_choices:
            reply = self._vlm.ask_choice(question, ("yes", "no"), **options)
        else:
            reply = self._vlm.ask(question, **options)
        if reply.text.lower() != "yes":
            raise SceneError(f"{place} is not free: {reply.text!r}")
        # A free slot shows nothing to shift towards: its middle is the goal.
        return self._sighting(reply, place, shifted=False)

    def _ask(self, question: str) -> Reply:
        return self._vlm.ask(question, **self._options())

    def _options(self) -> AskOptions:
        return {"newer_than_ns": self._newer_than_ns(), "prune": self._prune}

    def _sighting(self, reply: Reply, place: Place, shifted: bool = True) -> Sighting:
        assert reply.masks is not None  # the guard needs masks
        found = evidence(reply.masks.masks[0], place, self._shelf, self._camera())
        if found.kept_share < self._belief.min_kept_share:
            raise UngroundedAnswerError(
                f"{reply.question!r} was answered {reply.text!r}, but only"
                f" {found.kept_share:.0%} of {place} was looked at, less than"
                f" {self._belief.min_kept_share:.0%}",
                reply,
            )
        point = self._shelf.floor_centre(place)
        if shifted:
            limit = self._belief.max_shift_m
            shift = self._belief.evidence_weight * found.shift_m
            point[1] += float(np.clip(shift, -limit, limit))
        return Sighting(place, point)
