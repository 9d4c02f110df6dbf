"""How questions are worded: training templates, held-out templates, politeness and distractors.

Round brackets hold alternatives, ``a (b|c|)`` expands to ``a b``, ``a c`` and ``a``. Curly fields
are filled by ``questions``. The held-out templates use words that training knows in wordings that
it never saw; a test expands both lists and checks that they share nothing.
"""

from __future__ import annotations

import itertools
import re
from functools import lru_cache

TRAIN: dict[str, tuple[str, ...]] = {
    "exist": (
        "is there (a|any) {thing} on the shelves?",
        "(do|can) you see a {thing} on the (shelves|rack)?",
        "are there any {things} on the (shelves|rack)?",
        "is a {thing} on the (shelves|rack)?",
        "does the rack (hold|have|contain) a {thing}?",
        "can you find a {thing} on the rack?",
    ),
    "exist_shelf": (
        "is there (a|any) {thing} on the {shelf} shelf?",
        "(do|can) you see a {thing} on the {shelf} (shelf|level)?",
        "does the {shelf} shelf (hold|have|contain) a {thing}?",
        "is a {thing} on the {shelf} (shelf|level)?",
        "{shelf} shelf: is there a {thing}?",
        "are there any {things} on the {shelf} (shelf|level)?",
    ),
    "colour": (
        "what (colour|color) is the (object|item|thing) in {place}?",
        "which (colour|color) does the (object|item) in {place} have?",
        "(colour|color) of the (object|item|thing) in {place}?",
        "tell me the (colour|color) of the (object|item) in {place}.",
        "what is the (colour|color) of the (object|thing) in {place}?",
        "{place}: what (colour|color) is the (object|item)?",
        "what (colour|color) is {place}?",
    ),
    "what": (
        "what is (in|at) {place}?",
        "what do you see (in|at) {place}?",
        "what object is (in|at) {place}?",
        "tell me what is in {place}.",
        "which (object|item) is in {place}?",
        "{place}: what is (in it|there)?",
        "name the (object|item) in {place}.",
        "what (is|do you see) on the {shelf} shelf, slot {n}?",
        "what does {place} (hold|contain)?",
    ),
    "where": (
        "where is the {thing}?",
        "where can (i|you) find the {thing}?",
        "in which (slot|place) is the {thing}?",
        "which (slot|place) (holds|has|contains) the {thing}?",
        "find the {thing}.",
        "tell me where the {thing} is.",
        "where do you see the {thing}?",
        "(locate|show me) the {thing}.",
        "what is the (place|position|location) of the {thing}?",
    ),
    "count_all": (
        "how many (objects|items|things) are (there on|on) the (shelves|rack)?",
        "how many (objects|items|things) do you see on the (shelves|rack)?",
        "count the (objects|items|things) on the (shelves|rack).",
        "what is the (total|number) of (objects|items) on the (shelves|rack)?",
        "tell me how many (objects|items) are on the (shelves|rack).",
        "how many (objects|items) does the rack (hold|have)?",
    ),
    "count_shelf": (
        "how many (objects|items|things) are (there on|on) the {shelf} (shelf|level)?",
        "how many (objects|items) do you see on the {shelf} (shelf|level)?",
        "count the (objects|items|things) on the {shelf} (shelf|level).",
        "what is the number of (objects|items) on the {shelf} shelf?",
        "{shelf} shelf: how many (objects|items) are there?",
        "how many (objects|items) does the {shelf} shelf (hold|have)?",
    ),
    "count_colour": (
        "how many {colour} (objects|items|things) are (there on|on) the (shelves|rack)?",
        "how many {colour} (objects|items) do you see on the (shelves|rack)?",
        "count the {colour} (objects|items|things) on the (shelves|rack).",
        "what is the number of {colour} (objects|items) on the (shelves|rack)?",
        "tell me how many {colour} (objects|items) are on the (shelves|rack).",
        "how many (objects|items) on the (shelves|rack) are {colour}?",
    ),
    "gripper": (
        "what is the (gripper|robot|arm) holding?",
        "what is in the (gripper|hand of the robot)?",
        "what does the (gripper|robot|arm) (hold|have|carry)?",
        "which (object|item) is in the gripper?",
        "tell me what the (gripper|robot|arm) is holding.",
        "what do you see in the gripper?",
        "name the (object|item) in the gripper.",
        "gripper: what is (in it|there)?",
    ),
    "gripper_colour": (
        "what (colour|color) is the (object|item|thing) in the gripper?",
        "what is the (colour|color) of the (object|item) in the gripper?",
        "(colour|color) of the (object|item|thing) in the gripper?",
        "which (colour|color) does the (object|item) in the gripper have?",
        "tell me the (colour|color) of the (object|item) in the gripper.",
        "what (colour|color) is the (object|item) the (robot|arm|gripper) is holding?",
    ),
    "empty": (
        "is {place} (empty|free)?",
        "is (there nothing|nothing) in {place}?",
        "tell me if {place} is (empty|free).",
        "{place}: is it (empty|free)?",
        "is {place} still (empty|free)?",
        "can you see if {place} is (empty|free)?",
    ),
    "free": (
        "which slots (are|on) the {shelf} shelf are (free|empty)?",
        "which slots are (free|empty) on the {shelf} (shelf|level)?",
        "(list|name) the (free|empty) slots on the {shelf} (shelf|level).",
        "what slots are (free|empty) on the {shelf} shelf?",
        "tell me the (free|empty) slots of the {shelf} shelf.",
        "{shelf} shelf: which slots are (free|empty)?",
        "where is (free space|space) on the {shelf} shelf?",
    ),
    "hazard": (
        "is there (a|any) hazard on the floor?",
        "what hazard is on the floor?",
        "which hazard do you see on the floor?",
        "is there (anything|something|any obstacle) on the floor?",
        "what is (on the floor|in the way)?",
        "what do you see on the floor?",
        "tell me what is on the floor.",
        "(name|list) the (hazard|obstacle) on the floor.",
    ),
    "caption": (
        "describe the (scene|picture|image).",
        "what do you see?",
        "tell me what you see.",
        "describe what you see.",
        "give me a (full description|description) of the scene.",
        "list everything (you see|in the scene).",
    ),
}

HELD_OUT: dict[str, tuple[str, ...]] = {
    "exist": (
        "does the rack have any {things}?",
        "can you see any {thing} on the rack?",
        "tell me if there is a {thing} on the shelves.",
    ),
    "exist_shelf": (
        "can you find a {thing} on the {shelf} shelf?",
        "tell me if there is a {thing} on the {shelf} shelf.",
        "on the {shelf} shelf, is there a {thing}?",
    ),
    "colour": (
        "the object in {place} has what colour?",
        "name the colour of the item in {place}.",
        "in {place}, what colour is the thing?",
    ),
    "what": (
        "which thing do you see in {place}?",
        "tell me which object is at {place}.",
        "what can you see in {place}?",
    ),
    "where": (
        "in what place is the {thing}?",
        "tell me which slot has the {thing}.",
        "can you find the {thing}?",
        "where on the rack is the {thing}?",
    ),
    "count_all": (
        "give me the number of objects on the shelves.",
        "what number of items do you see on the rack?",
        "tell me the total of things on the rack.",
    ),
    "count_shelf": (
        "tell me how many objects are on the {shelf} shelf.",
        "on the {shelf} shelf, how many items do you see?",
        "give me the number of things on the {shelf} level.",
    ),
    "count_colour": (
        "give me the number of {colour} things on the rack.",
        "how many {colour} items does the rack hold?",
        "on the shelves, how many objects are {colour}?",
    ),
    "gripper": (
        "which thing does the robot hold?",
        "tell me what is in the gripper.",
        "what object do you see in the gripper?",
    ),
    "gripper_colour": (
        "name the colour of the object in the gripper.",
        "the item in the gripper has which color?",
        "in the gripper, what colour is the thing?",
    ),
    "empty": (
        "do you see if {place} is empty?",
        "tell me if there is nothing in {place}.",
        "can you tell me if {place} is still free?",
    ),
    "free": (
        "on the {shelf} shelf, which slots are empty?",
        "give me the free slots on the {shelf} level.",
        "what are the empty slots of the {shelf} shelf?",
    ),
    "hazard": (
        "do you see a hazard on the floor?",
        "name what is in the way on the floor.",
        "which obstacle is there on the floor?",
    ),
    "caption": (
        "give me a description of the image.",
        "describe everything in the picture.",
        "tell me everything you see in the scene.",
    ),
}

PLACES = (
    "slot {n} (of|on) the {shelf} shelf",
    "the {shelf} shelf, slot {n}",
    "{shelf} shelf slot {n}",
    "the {nth} slot (of|on) the {shelf} shelf",
    "(position|place) {n} (of|on) the {shelf} shelf",
    "slot {n} of the {shelf} level",
)
HELD_OUT_PLACES = (
    "the {nth} place on the {shelf} shelf",
    "slot {n}, {shelf} shelf",
    "the {shelf} level, slot {n}",
)

PREFIXES = (
    "please",
    "hey robot,",
    "robot,",
    "hello,",
    "ok,",
    "excuse me,",
    "quick question:",
    "look at the image.",
)
SUFFIXES = ("please", "thanks", "thank you.", "answer shortly.", "be quick.")
DISTRACTORS = (
    "the forklift is charging outside.",
    "my shift ends in an hour.",
    "the truck arrives at noon.",
    "it is cold in the hall today.",
    "we need to hurry up.",
    "the manager asked for it.",
    "the lights were changed last week.",
    "yesterday we moved a lot of pallets to the other hall.",
)
HELD_OUT_DISTRACTORS = (
    "the truck was late yesterday.",
    "the manager is in the other hall.",
    "we changed the forklift last week.",
)

_GROUP = re.compile(r"\(([^()]*)\)")


@lru_cache(maxsize=1024)
def expand(template: str) -> tuple[str, ...]:
    """All wordings of a template, alternatives written out."""
    pieces = _GROUP.split(template)
    options = [piece.split("|") if i % 2 else [piece] for i, piece in enumerate(pieces)]
    return tuple(" ".join("".join(choice).split()) for choice in itertools.product(*options))


def wordings(family: str, held_out: bool) -> tuple[str, ...]:
    """Templates of a family, alternatives not yet written out."""
    return (HELD_OUT if held_out else TRAIN)[family]
