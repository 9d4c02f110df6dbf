"""Shows answers in the rerun viewer: live, or through a .rrd file.

    camera/<name>          the picture; on it
    camera/<name>/kept       what the model did not see, darkened
    camera/<name>/scores     heat map of the patches' scores, of each picture's own scale
    answers                one line per answer
    latency/<stage>        milliseconds; tokens/kept, confidence/<query_id>

Needs the extra `view` (rerun-sdk); imports it when a log is opened.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import BackendUnavailableError, BagError
from edge_atp.types import SourceRegion, Status
from edge_atp.viewing.events import STAGES, ShownAnswer, ShownImage, ShownMask

APPLICATION = "edge_atp"
TIMELINE = "frame"
_OUTSIDE, _DROPPED, _KEPT = 0, 1, 2  # classes of a pixel; outside: not in the model's picture
_DARKNESS = 0.75
_HEAT_OPACITY = 0.6
_HEAT_LEVELS = 64  # classes 1 to 64 of the heat map; 0 is outside
_LEVELS = {Status.FINAL: "INFO", Status.TRUNCATED: "WARN", Status.CANCELED: "WARN"}


class RerunLog:
    """A recording in rerun.

    Args:
        save: .rrd file to write. None: a viewer window is opened, or the one that runs is used.
        address: of a viewer to connect to (rerun+http://HOST:PORT/proxy) instead.
    Raises:
        BackendUnavailableError: rerun is not installed, or no viewer can be opened.
        BagError: the file cannot be written.
    """

    def __init__(self, save: Path | None = None, address: str = "") -> None:
        self._rr = _load_rerun()
        self._stream = self._rr.RecordingStream(APPLICATION)
        self._cameras: set[str] = set()
        if save is not None:
            try:
                save.parent.mkdir(parents=True, exist_ok=True)
                self._stream.save(save)
            except (OSError, RuntimeError) as error:
                raise BagError(f"cannot write {save}: {error}") from error
        else:
            self._open_viewer(address)

    def close(self) -> None:
        """Send or write what is pending."""
        self._send_layout()
        self._stream.flush()
        self._stream.disconnect()

    def show(self, event: ShownAnswer | ShownImage) -> None:
        """Log an event under its frame's stamp."""
        self._stream.set_time(TIMELINE, timestamp=np.datetime64(event.stamp_ns, "ns"))
        if isinstance(event, ShownImage):
            self._show_image(event)
        else:
            self._show_answer(event)

    def _show_image(self, image: ShownImage) -> None:
        rr, path = self._rr, self._camera(image.camera)
        if image.pixels is not None:
            self._stream.log(path, rr.Image(image.pixels).compress(jpeg_quality=85))
        else:
            self._stream.log(
                path, rr.EncodedImage(contents=image.encoded, media_type=image.media_type)
            )

    def _show_answer(self, answer: ShownAnswer) -> None:
        rr, log = self._rr, self._stream.log
        log("answers", rr.TextLog(_line(answer), level=_LEVELS.get(answer.status, "ERROR")))
        if answer.status not in (Status.FINAL, Status.TRUNCATED):
            return
        for stage in STAGES:
            # A bag written without timings holds zeros, which would look like a fast machine.
            if answer.latency_s.get("total", 0.0) > 0:
                log(f"latency/{stage}", rr.Scalars(1e3 * answer.latency_s[stage]))
        log("tokens/kept", rr.Scalars(answer.visual_kept))
        log(f"confidence/{_name(answer.query_id)}", rr.Scalars(answer.confidence))
        for mask in answer.masks:
            self._show_mask(mask)

    def _show_mask(self, mask: ShownMask) -> None:
        rr, path = self._rr, self._camera(mask.camera)
        classes = np.full(mask.size[::-1], _OUTSIDE, dtype=np.uint8)
        _fill(classes, mask.region, np.where(mask.kept, _KEPT, _DROPPED).astype(np.uint8))
        self._stream.log(f"{path}/kept", rr.SegmentationImage(classes, opacity=_DARKNESS))
        if mask.scores is not None:
            heat = np.full(mask.size[::-1], _OUTSIDE, dtype=np.uint8)
            _fill(heat, mask.region, heat_levels(mask.scores))
            self._stream.log(f"{path}/scores", rr.SegmentationImage(heat, opacity=_HEAT_OPACITY))

    def _camera(self, name: str) -> str:
        """Entity path of a camera; on the first use its classes get their colours."""
        path = f"camera/{_name(name)}"
        if name not in self._cameras:
            self._cameras.add(name)
            clear, black, context = (0, 0, 0, 0), (0, 0, 0, 255), self._rr.AnnotationContext
            outside = "not in the model's picture"
            kept = [
                (_OUTSIDE, outside, black),
                (_DROPPED, "dropped", black),
                (_KEPT, "kept", clear),
            ]
            self._stream.log(f"{path}/kept", context(kept), static=True)
            heat = [(_OUTSIDE, outside, clear), *_heat_classes()]
            self._stream.log(f"{path}/scores", context(heat), static=True)
        return path

    def _open_viewer(self, address: str) -> None:
        try:
            if address:
                self._stream.connect_grpc(address)
            else:
                self._stream.spawn()
        except (OSError, RuntimeError, ValueError) as error:
            raise BackendUnavailableError(
                f"no rerun viewer can be reached ({error}); without a display, write a file with"
                " --save FILE.rrd and open it elsewhere: rerun FILE.rrd"
            ) from error

    def _send_layout(self) -> None:
        blueprint = importlib.import_module("rerun.blueprint")
        paths = [f"camera/{_name(name)}" for name in sorted(self._cameras)]
        pictures = [
            view
            for path in paths
            for view in (
                blueprint.Spatial2DView(
                    origin=path, contents=["$origin", "$origin/kept"], name=f"{path}: kept"
                ),
                blueprint.Spatial2DView(
                    origin=path, contents=["$origin", "$origin/scores"], name=f"{path}: scores"
                ),
            )
        ]
        plots = [
            blueprint.TextLogView(origin="answers", name="answers"),
            blueprint.TimeSeriesView(origin="latency", name="latency by stage, ms"),
            blueprint.TimeSeriesView(origin="confidence", name="confidence"),
        ]
        columns = [blueprint.Vertical(*pictures)] if pictures else []
        self._stream.send_blueprint(
            blueprint.Blueprint(
                blueprint.Horizontal(*columns, blueprint.Vertical(*plots)), collapse_panels=True
            )
        )


def heat_levels(scores: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(rows, cols) scores of any scale -> (rows, cols) levels: 1 for the lowest, 64 the highest.

    Equal scores are all the lowest.
    """
    low, high = float(scores.min()), float(scores.max())
    span = high - low if high > low else 1.0
    return np.asarray(1 + np.round((_HEAT_LEVELS - 1) * (scores - low) / span), dtype=np.uint8)


def _heat_classes() -> list[tuple[int, str, tuple[int, int, int, int]]]:
    """Class, label and colour of each level: blue the lowest, red the highest."""
    ramp = np.linspace(0, 255, _HEAT_LEVELS).round().astype(np.uint8).reshape(-1, 1)
    colours = cv2.applyColorMap(ramp, cv2.COLORMAP_TURBO)[:, 0, ::-1]
    return [
        (1 + level, f"score {level / (_HEAT_LEVELS - 1):.2f}", (int(r), int(g), int(b), 255))
        for level, (r, g, b) in enumerate(colours)
    ]


def _fill(picture: NDArray[np.uint8], region: SourceRegion, values: NDArray[np.uint8]) -> None:
    """Stretch (rows, cols) values over the region of a picture."""
    size = (region.width, region.height)
    stretched = cv2.resize(values, size, interpolation=cv2.INTER_NEAREST)
    rows = slice(region.y, region.y + region.height)
    columns = slice(region.x, region.x + region.width)
    picture[rows, columns] = stretched


def _line(answer: ShownAnswer) -> str:
    asked = answer.question or answer.query_id
    if answer.status not in (Status.FINAL, Status.TRUNCATED):
        return f"{asked} -> {answer.status.name}: {answer.error_msg}"
    sure = f"{answer.confidence:.2f}, " if answer.confidence else ""
    return f"{asked} -> {answer.text} ({sure}{answer.visual_kept}/{answer.visual_total} tokens)"


def _name(text: str) -> str:
    """A part of an entity path: letters, digits, - and _."""
    return re.sub(r"[^\w-]+", "_", text) or "_"


def _load_rerun() -> Any:
    try:
        return importlib.import_module("rerun")
    except ImportError as error:
        raise BackendUnavailableError(
            f"the viewer needs rerun ({error}): pip install 'edge-atp[view]'"
        ) from error
