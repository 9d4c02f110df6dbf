"""A recorded result, and the recording it was made from, as one sequence of things to show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edge_atp.errors import BagError
from edge_atp.replay.bags import open_bag, read_messages
from edge_atp.replay.images import to_rgb
from edge_atp.replay.interfaces import (
    ANSWER,
    COMPRESSED_IMAGE,
    IMAGE,
    MASKS,
    load_typestore,
)
from edge_atp.replay.recording import open_recording
from edge_atp.types import Status
from edge_atp.viewing.events import ShownAnswer, ShownImage
from edge_atp.viewing.messages import shown_answer, shown_image, stamp_ns


def read_events(
    result: Path, recording: Path | None = None, questions: Mapping[str, str] | None = None
) -> Iterator[ShownAnswer | ShownImage]:
    """Everything to show, in order of the frames' stamps; a picture before what is said about it.

    Args:
        result: bag with answers and masks, of `edge-atp replay` or recorded from the live node.
        recording: bag with the cameras' images; None: those in ``result``, if any.
        questions: texts by query_id, which the answers do not carry.
    Raises:
        BagError: unreadable, or without answers.
    """
    typestore = load_typestore()
    answers = _answers(result, typestore, questions or {})
    events: list[tuple[int, int, ShownAnswer | ShownImage]] = [
        (answer.stamp_ns, 1, answer) for answer in answers
    ]
    for image in _images(recording or result, typestore, required=recording is not None):
        events.append((image.stamp_ns, 0, image))
    for _, _, event in sorted(events, key=lambda entry: entry[:2]):
        yield event


def _answers(result: Path, typestore: Any, questions: Mapping[str, str]) -> list[ShownAnswer]:
    masks: dict[tuple[str, int, int], Any] = {}
    found: list[Any] = []
    with open_bag(result, typestore) as reader:
        wanted = [c for c in reader.connections if c.msgtype in (ANSWER, MASKS)]
        for connection, _, message in read_messages(result, reader, wanted):
            if connection.msgtype == MASKS:
                masks[_key(message)] = message
            elif message.status != Status.PARTIAL.value:
                found.append(message)
        topics = sorted({c.topic for c in reader.connections})
    if not found:
        raise BagError(f"bag {result} holds no answers ({ANSWER}); its topics: {', '.join(topics)}")
    return [
        shown_answer(message, masks.get(_key(message)), questions.get(message.query_id, ""))
        for message in found
    ]


def _key(message: Any) -> tuple[str, int, int]:
    return str(message.query_id), int(message.sequence), stamp_ns(message.header.stamp)


def _images(path: Path, typestore: Any, required: bool) -> Iterator[ShownImage]:
    if not required and not _has_images(path, typestore):
        return
    ignored = _own_node(path, typestore)
    with open_recording(path, typestore, ignore=ignored) as recording:
        for image in recording.images():
            shown = shown_image(image.camera, image.message, to_rgb)
            if shown is not None:
                yield shown


def _image_topics(path: Path, typestore: Any) -> list[str]:
    with open_bag(path, typestore) as reader:
        return [c.topic for c in reader.connections if c.msgtype in (IMAGE, COMPRESSED_IMAGE)]


def _has_images(path: Path, typestore: Any) -> bool:
    """Whether a bag holds a camera's images, beside pictures of the node's own."""
    own = f"{_own_node(path, typestore)}/"
    return any(not topic.startswith(own) for topic in _image_topics(path, typestore))


def _own_node(path: Path, typestore: Any) -> str:
    """The node whose answers, or whose pictures, a bag holds; its topics are no cameras."""
    with open_bag(path, typestore) as reader:
        answers = [c.topic for c in reader.connections if c.msgtype == ANSWER]
    return answers[0].rpartition("/")[0] if answers else ""
