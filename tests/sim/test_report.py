"""What a run shows: verdicts against the truth, the contact sheet, the film."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from edge_atp_msgs.msg import Answer, PatchMask, PatchMaskArray
from edge_atp_ros.client import Reply
from rich.console import Console

from sim.report import print_orders, write_film, write_sheet
from sim.watch import Asked, OrderRecord, Shot

ORDER = "move the red box to the top shelf"
IMAGE = np.full((480, 640, 3), 90, np.uint8)


def truth(held: str | None = None, **slots: str) -> dict:
    names = [slots.get(f"s{n}") for n in range(12)]
    return {"slots": names, "held": held, "hazard": None}


def record(outcome: str = "done", detail: str = "top shelf, slot 2", **fields) -> OrderRecord:
    given = {"before": truth(s9="red box", s4="blue tote"), "ended_s": 12.0}
    given |= {"after": truth(s1="red box", s4="blue tote")}
    return OrderRecord(ORDER, 2.0, outcome=outcome, detail=detail, **(given | fields))


@pytest.mark.parametrize(
    ("result", "right"),
    [
        (record(), True),
        (record(detail="top shelf, slot 3"), False),  # it stands elsewhere
        (record(after=truth(s1="red box", s5="blue tote")), False),  # something else was moved
        (record(after=truth(s1="red box")), False),  # something else was lost
        (record(after=truth(held="green drum", s1="red box", s4="blue tote")), False),
        (record("failed", "no free slot"), False),
        (record(detail="already in top shelf, slot 2"), False),
        (record(before={}), False),
    ],
)
def test_an_order_is_judged_by_the_truth(result, right):
    assert result.right is right


def answered() -> Asked:
    mask = PatchMask(image_width=640, image_height=480, grid_rows=16, grid_cols=16)
    mask.roi.x_offset, mask.roi.width, mask.roi.height = 80, 480, 480
    mask.kept = [255] * 32
    answer = Answer(text="bottom shelf, slot 2", confidence=0.75)
    reply = Reply(answer, PatchMaskArray(masks=[mask]))
    return Asked("where is the red box?", reply, IMAGE)


def test_the_table_counts_right_and_wrong():
    console = Console(width=160, record=True)
    wrong = record(detail="top shelf, slot 3", questions=[answered()])
    print_orders(console, [record(), wrong, record("failed", "no free slot")])
    text = console.export_text()
    assert "3 orders: 1 right, 1 wrong, 1 not done" in text
    assert "0.75" in text


def test_a_row_of_the_sheet_shows_what_was_seen_and_done(tmp_path):
    shots = [("placing: red box in top shelf, slot 2", Shot(5.0, IMAGE))]
    path = tmp_path / "new" / "sheet.png"
    assert write_sheet([record(questions=[answered()], shots=shots), record()], path)
    sheet = cv2.imread(str(path))
    assert sheet.shape[1] == 4 * 488 + 8
    assert (sheet == 200).all(axis=-1).sum() > 2 * 480 * 360  # two of the four are missing
    assert not write_sheet([record()], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize("gif", [True, False])
def test_the_film_holds_every_shot(tmp_path, monkeypatch, gif):
    if gif and not hasattr(cv2, "imwriteanimation"):
        pytest.skip("this OpenCV writes no GIF (before 4.11)")
    if not gif:
        monkeypatch.delattr(cv2, "imwriteanimation", raising=False)
    shots = [Shot(n / 2, np.full((480, 640, 3), 40 * n, np.uint8)) for n in range(5)]
    path = write_film(shots, tmp_path)

    assert path.suffix == (".gif" if gif else ".mp4")
    film = cv2.VideoCapture(str(path))
    frames = []
    while (read := film.read())[0]:
        frames.append(read[1].mean())
    assert frames == pytest.approx([0, 40, 80, 120, 160], abs=6)
    assert write_film([], tmp_path) is None
