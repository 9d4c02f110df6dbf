"""The language model's embedding table, memory-mapped: only the rows used are read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import ArtifactError
from edge_atp.runtime.model_dir import ModelDirectory
from edge_atp.runtime.outputs import Float


class EmbeddingTable:
    """(vocab, H) input embeddings.

    Raises:
        ArtifactError: the file is damaged or does not fit the manifest.
    """

    def __init__(self, directory: ModelDirectory) -> None:
        path = directory.file("embed_tokens")
        try:
            table: NDArray[np.floating] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path} is no valid table ({error}); export again") from error
        llm = directory.manifest.llm
        if table.shape != (llm.vocab, llm.hidden) or table.dtype not in (np.float16, np.float32):
            raise ArtifactError(
                f"{path} is {table.shape} {table.dtype}, the manifest says ({llm.vocab},"
                f" {llm.hidden}) float16 or float32; export again"
            )
        self._table = table

    def __call__(self, token_ids: Sequence[int] | NDArray[np.int64]) -> Float:
        """Rows (M, H) float32 of token ids."""
        rows: Float = self._table[np.asarray(token_ids, np.int64)].astype(np.float32)
        return rows
