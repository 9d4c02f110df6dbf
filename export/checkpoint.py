"""A Hugging Face checkpoint folder: its configuration and its tensors, read one at a time.

Only safetensors are read: a pickled checkpoint can run code when it is opened.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy, which safetensors needs
import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from edge_atp.errors import ArtifactError

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# safetensors names of the types a checkpoint's weights may have.
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class _Location:
    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str


class TensorStore:
    """Tensors of one or several safetensors files under canonical names, loaded when asked for.

    ``rename`` maps a stored name to the canonical one, or None to leave the tensor out.
    """

    def __init__(self, folder: Path, rename: Callable[[str], str | None] = lambda name: name):
        self.folder = folder
        self._locations: dict[str, _Location] = {}
        self._sha256 = ""
        for file in _safetensors_files(folder):
            with _open(file) as reader:
                for key in reader.keys():  # noqa: SIM118  the reader is no mapping
                    name = rename(key)
                    if name is None:
                        continue
                    part = reader.get_slice(key)
                    self._locations[name] = _Location(
                        file, key, tuple(part.get_shape()), str(part.get_dtype())
                    )

    def __contains__(self, name: str) -> bool:
        return name in self._locations

    def names(self) -> Iterator[str]:
        """Canonical names, sorted."""
        return iter(sorted(self._locations))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return self._find(name).shape

    def dtype(self, name: str) -> str:
        """NumPy name of a tensor's type, without reading it.

        Raises:
            ArtifactError: a type that is no weight type.
        """
        stored = self._find(name).dtype
        if stored not in _DTYPES:
            raise ArtifactError(
                f"tensor {name!r} in {self.folder} is of type {stored}; the exporter reads"
                f" {', '.join(_DTYPES)}. Quantised checkpoints are not a source"
            )
        return _DTYPES[stored]

    def get(self, name: str) -> NDArray[Any]:
        """Read one tensor in the type it is stored in.

        Raises:
            ArtifactError: it is missing or its values are not finite; the message names it.
        """
        self.dtype(name)
        location = self._find(name)
        with _open(location.file) as reader:
            array: NDArray[Any] = reader.get_tensor(location.key)
        # NaN or infinity anywhere makes the sum of a float64 accumulation non-finite.
        if not np.isfinite(array.sum(dtype=np.float64)):
            raise ArtifactError(
                f"tensor {name!r} ({location.key} in {location.file}) holds NaN or infinity"
            )
        return array

    def num_bytes(self, prefix: str = "") -> int:
        """Stored size of all tensors whose name starts with ``prefix``."""
        sizes = {"F32": 4, "F16": 2, "BF16": 2}
        return sum(
            int(np.prod(loc.shape)) * sizes.get(loc.dtype, 4)
            for name, loc in self._locations.items()
            if name.startswith(prefix)
        )

    def sha256(self) -> str:
        """Hash over the safetensors files, in order of their names; read once."""
        if self._sha256:
            return self._sha256
        digest = hashlib.sha256()
        for file in _safetensors_files(self.folder):
            with file.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
        self._sha256 = digest.hexdigest()
        return self._sha256

    def _find(self, name: str) -> _Location:
        if name not in self._locations:
            near = get_close_matches(name, self._locations, cutoff=0.0)
            raise ArtifactError(
                f"tensor {name!r} is missing from {self.folder} (nearest of its"
                f" {len(self._locations)}: {', '.join(near)}); the checkpoint is incomplete or of"
                " another architecture"
            )
        return self._locations[name]


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """Read a JSON configuration of a checkpoint.

    Raises:
        ArtifactError: missing or not a JSON object.
    """
    path = folder / name
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        # An OSError's own text names the file a second time.
        reason = getattr(error, "strerror", None) or error
        raise ArtifactError(
            f"{path} cannot be read ({reason}); give a Hugging Face checkpoint folder"
        ) from error
    if not isinstance(config, dict):
        raise ArtifactError(f"{path} holds no JSON object")
    return config


def _safetensors_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    pickled = sorted(p.name for pattern in _PICKLED for p in folder.glob(pattern))
    if pickled:
        raise ArtifactError(
            f"{folder} holds only pickled weights ({', '.join(pickled[:3])}), which can run code"
            " when opened and are refused; convert them with"
            " `model.save_pretrained(..., safe_serialization=True)`"
        )
    raise ArtifactError(f"{folder} holds no *.safetensors; give a Hugging Face checkpoint folder")


def _open(file: Path) -> Any:
    try:
        return safe_open(str(file), framework="numpy")
    except Exception as error:  # the binding raises its own type and OSError
        raise ArtifactError(
            f"{file} is no valid safetensors file ({error}); download or save it again"
        ) from error
