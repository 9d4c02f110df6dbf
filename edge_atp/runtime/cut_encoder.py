"""The vision encoder that drops patches on the way, on directories exported with --vision-cut.

It runs for methods named ``cut+NAME``: the encoder cuts by itself, the question plays no part, and
NAME then chooses among what is left. One encoding serves every question, as the whole one does.
Knows nothing of how the graph cuts (``export.vision_cut``).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import ConfigError, InferenceError
from edge_atp.runtime.in_vit.encoder import check_pixels
from edge_atp.runtime.lazy_graphs import LazyGraphs
from edge_atp.runtime.manifest import Manifest
from edge_atp.runtime.outputs import Float, VisionOutput
from edge_atp.runtime.sessions.base import Session

ROLE = "vision_cut"
_PREFIX = "cut+"


def split_method(name: str) -> tuple[bool, str]:
    """Whether the encoder cuts, and the method behind it: "cut+atp" is (True, "atp")."""
    return name.startswith(_PREFIX), name.removeprefix(_PREFIX)


def has_cut(manifest: Manifest) -> bool:
    """Whether the directory holds the encoder that cuts."""
    return any(graph.role == ROLE for graph in manifest.graphs)


def most_kept(name: str, manifest: Manifest) -> int:
    """Patches that the method ``name`` can choose among, of one image."""
    vision = manifest.vision
    return vision.cut_kept[-1] if split_method(name)[0] and vision.cut_kept else vision.num_patches


def require_cut(name: str, manifest: Manifest) -> None:
    """Refuse a directory without the encoder that cuts.

    Args:
        name: of the method that asks for it, for the message.
    Raises:
        ConfigError: says how to export it.
    """
    if not has_cut(manifest):
        source = manifest.source.model
        raise ConfigError(
            f"{name} needs a vision encoder that drops patches on the way, which this directory of"
            f" {source} does not hold; export it with `python -m export --model"
            f" models/{source}.yaml --out DIR --vision-cut LAYER:KEPT` (or the checkpoint's"
            f" folder), or choose {split_method(name)[1]}"
        )


class CutEncoder:
    """Runs the graph ``vision_cut``; may be opened by one thread while another runs it.

    Args:
        open_graph: opens a graph of the directory by its role; called when it is first needed.
        manifest: with the graph.
    """

    def __init__(self, open_graph: Callable[[str], Session], manifest: Manifest) -> None:
        self._graphs = LazyGraphs(open_graph)
        self._manifest = manifest

    @property
    def num_left(self) -> int:
        """Patches that the encoder leaves."""
        return self._manifest.vision.cut_kept[-1]

    @property
    def cuts(self) -> tuple[tuple[int, int], ...]:
        """(layer, patches left) of every cut, in order."""
        vision = self._manifest.vision
        return tuple(zip(vision.cut_layers, vision.cut_kept, strict=True))

    def open(self) -> bool:
        """Open the graph now instead of with the first image; whether it was not open yet."""
        return self._graphs.open(ROLE)

    def encode(self, pixel_values: Float) -> VisionOutput:
        """Encode one preprocessed image (1, 3, size, size); ``place`` says which patches are left.

        Raises:
            ShapeError: another shape, or values that are not finite.
            InferenceError: the graph did not name the patches it kept.
        """
        check_pixels(pixel_values, self._manifest.vision.image_size)
        inputs = {"pixel_values": pixel_values.astype(np.float32, copy=False)}
        names = tuple(o.name for o in self._manifest.graph(ROLE).outputs)
        out = self._graphs.get(ROLE).run(inputs, names)
        place: NDArray[np.int64] = out.pop("place")
        count = self._manifest.vision.num_patches
        if not (np.diff(place) > 0).all() or place[0] < 0 or place[-1] >= count:
            raise InferenceError(
                f"graph {ROLE!r} put out patches that do not ascend within {count}; export again"
            )
        arrays = {name: array[0] for name, array in out.items()}
        empty = np.zeros((len(place), 0), np.float32)
        return VisionOutput(**{"patch_embeds": empty, **arrays}, place=place)

    def close(self) -> None:
        """Release the graph; it is opened again when needed."""
        self._graphs.close()
