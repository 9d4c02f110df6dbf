"""Rendered scenes on disk: shards with checksums, written by several processes.

A shard holds 500 consecutive seeds of one split as two ``.npy`` files (images and coverage) and a
JSON with their SHA-256. States are not stored: they follow from (split, seed).
Run: ``python -m models.warehouse_tiny.dataset --split train --scenes 24000 --out DIR``.
"""

from __future__ import annotations

import argparse
import atexit
import hashlib
import json
import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.warehouse_tiny import vocabulary as v
from models.warehouse_tiny.coverage import patch_coverage
from models.warehouse_tiny.preprocess import to_model_square
from models.warehouse_tiny.scene import sample_scene, scene_rng

SHARD_SCENES = 500
GENERATOR_VERSION = 1


class ShardError(ValueError):
    """A data shard is missing, truncated or was not written by this generator."""


@dataclass(frozen=True)
class Shard:
    """images: (S, 224, 224, 3) uint8; coverage: (S, NUM_ENTITIES, 256) uint8, 255 = all."""

    split: str
    first_seed: int
    images: np.ndarray
    coverage: np.ndarray


def render_size(split: str, seed: int) -> tuple[int, int]:
    """Width and height a stored scene is drawn at before it is shrunk to 224.

    A third of the scenes come from 640x480, as a camera delivers them, so that the model knows
    both aliased and area-averaged edges.
    """
    return (640, 480) if scene_rng(split, seed, stream=9).random() < 1 / 3 else (224, 224)


def write_shard(folder: Path, split: str, first_seed: int, scenes: int = SHARD_SCENES) -> Path:
    """Render one shard and return the path of its JSON; one that is complete is kept."""
    stem = folder / f"{split}_{first_seed:06d}"
    index = stem.with_suffix(".json")
    if index.exists() and json.loads(index.read_text()).get("scenes", 0) >= scenes:
        return index
    images = np.empty((scenes, v.IMAGE_SIZE, v.IMAGE_SIZE, 3), np.uint8)
    coverage = np.empty((scenes, v.NUM_ENTITIES, v.NUM_PATCHES), np.uint8)
    renderer = _process_renderer()
    for i in range(scenes):
        width, height = render_size(split, first_seed + i)
        # 112 = 7 samples a patch side for the coverage of the 224 (480) pixel square.
        frame = renderer.render(
            sample_scene(split, first_seed + i), width, height, segmentation_scale=112 / height
        )
        images[i] = to_model_square(frame.image)
        coverage[i] = np.round(patch_coverage(_even_crop(frame.entities)) * 255)
    hashes = {}
    for name, array in (("images", images), ("coverage", coverage)):
        path = Path(f"{stem}.{name}.npy")
        temporary = path.with_suffix(".tmp.npy")
        np.save(temporary, array)
        os.replace(temporary, path)
        hashes[path.name] = _sha256(path)
    index.write_text(
        json.dumps(
            {
                "generator_version": GENERATOR_VERSION,
                "split": split,
                "first_seed": first_seed,
                "scenes": scenes,
                "sha256": hashes,
            },
            indent=1,
        )
    )
    return index


def _even_crop(entities: np.ndarray) -> np.ndarray:
    """Central 112 x 112 square of an entity map that is 112 high."""
    left = (entities.shape[1] - 112) // 2
    return entities[:, left : left + 112]


def load_shard(index: Path, verify: bool = True) -> Shard:
    """Memory-map one shard after checking its hashes.

    Raises:
        ShardError: a file is missing, its hash differs, or another generator version wrote it.
    """
    try:
        meta = json.loads(index.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ShardError(f"{index}: unreadable shard index ({error}); render it again") from error
    if meta.get("generator_version") != GENERATOR_VERSION:
        raise ShardError(
            f"{index}: generator_version is {meta.get('generator_version')!r}, this code writes "
            f"{GENERATOR_VERSION}; render the shard again"
        )
    for name, digest in meta["sha256"].items():
        path = index.parent / name
        if not path.exists():
            raise ShardError(f"{path}: missing; delete {index.name} and render it again")
        if verify and _sha256(path) != digest:
            raise ShardError(f"{path}: SHA-256 differs (truncated or changed); render it again")
    stem = str(index.with_suffix(""))
    return Shard(
        split=meta["split"],
        first_seed=meta["first_seed"],
        images=np.load(f"{stem}.images.npy", mmap_mode="r"),
        coverage=np.load(f"{stem}.coverage.npy", mmap_mode="r"),
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


_RENDERER = None


def _process_renderer():  # type: ignore[no-untyped-def]
    """One renderer for each process: a GL context cannot be shared."""
    global _RENDERER
    if _RENDERER is None:
        from models.warehouse_tiny.render import SceneRenderer

        _RENDERER = SceneRenderer()
        atexit.register(_RENDERER.close)
    return _RENDERER


def _job(arguments: tuple[str, str, int, int]) -> str:
    folder, split, first_seed, scenes = arguments
    return str(write_shard(Path(folder), split, first_seed, scenes))


def write_split(folder: Path, split: str, scenes: int, processes: int) -> list[Path]:
    """Render seeds 0..scenes-1 of a split with a progress bar; finished shards are skipped."""
    from rich.progress import track

    folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        (str(folder), split, first, min(SHARD_SCENES, scenes - first))
        for first in range(0, scenes, SHARD_SCENES)
    ]
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes) as pool:
        done = track(
            pool.imap_unordered(_job, jobs),
            total=len(jobs),
            description=f"{split}: shards of {SHARD_SCENES} scenes",
        )
        return sorted(Path(path) for path in done)


def main() -> None:
    """Command line of the renderer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--split", choices=v.SPLITS, required=True)
    parser.add_argument("--scenes", type=int, required=True)
    parser.add_argument("--out", type=Path, default=Path("out/warehouse_tiny/scenes"))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    write_split(arguments.out, arguments.split, arguments.scenes, arguments.processes)


if __name__ == "__main__":
    main()
