"""The CLIP text encoder, with a memory of the texts it has seen. Knows nothing of images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import MissingSignalError
from edge_atp.runtime.model_dir import ModelDirectory
from edge_atp.runtime.outputs import Float
from edge_atp.runtime.sessions.base import Session
from edge_atp.runtime.text import Span, TextTowerTokenizer, load_tokenizer

# Standing questions repeat; 256 texts of a 768-wide joint space are 0.8 MB.
CACHE_SIZE = 256
# Single tokens: 20 words of a 768-wide space are 60 kB a text.
TOKENS_CACHE_SIZE = 64


class TextEncoder:
    """Embeds texts in the joint image-text space."""

    def __init__(self, session: Session, tokenizer: TextTowerTokenizer) -> None:
        self._session = session
        self._tokenizer = tokenizer
        self._embeds: OrderedDict[str, Float] = OrderedDict()
        self._tokens: OrderedDict[str, tuple[Float, list[Span]]] = OrderedDict()

    def __len__(self) -> int:
        """Number of texts remembered."""
        return len(self._embeds)

    def __contains__(self, text: str) -> bool:
        """Whether a text is remembered."""
        return text in self._embeds

    def encode(self, text: str) -> Float:
        """The embedding (P,) of a text; read-only.

        A text longer than the encoder's context is cut into windows of even length and their
        unit-length embeddings are averaged.
        """
        if text in self._embeds:
            self._embeds.move_to_end(text)
            return self._embeds[text]
        embeds = [self._run(ids) for ids in self._tokenizer.windows(text)]
        embed = embeds[0] if len(embeds) == 1 else np.mean([_unit(e) for e in embeds], axis=0)
        self._embeds[text] = embed = embed.astype(np.float32)
        embed.flags.writeable = False
        if len(self._embeds) > CACHE_SIZE:
            self._embeds.popitem(last=False)
        return embed

    def encode_tokens(self, text: str) -> tuple[Float, list[Span]]:
        """(M', P) embeddings of a text's single tokens, and the characters of each; remembered.

        Raises:
            MissingSignalError: the text graph does not put them out.
        """
        if text in self._tokens:
            self._tokens.move_to_end(text)
            return self._tokens[text]
        windows, spans = self._tokenizer.token_windows(text)
        parts = []
        for ids in windows:
            out = self._session.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})
            if "text_tokens" not in out:
                raise MissingSignalError(
                    "the text encoder does not put out text_tokens; export the model again with"
                    " --vision-groups 1"
                )
            # Without the start and end token.
            parts.append(out["text_tokens"][0, 1:-1])
        self._tokens[text] = np.concatenate(parts), spans
        if len(self._tokens) > TOKENS_CACHE_SIZE:
            self._tokens.popitem(last=False)
        return self._tokens[text]

    def forget(self) -> None:
        """Empty the memory of texts."""
        self._embeds.clear()
        self._tokens.clear()

    def _run(self, ids: NDArray[np.int64]) -> Float:
        out = self._session.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})
        embed: Float = out["text_embed"][0]
        return embed


def open_text_encoder(
    directory: ModelDirectory, open_graph: Callable[[str], Session]
) -> tuple[TextEncoder | None, Session | None]:
    """The directory's text encoder and its graph, which the caller closes; None where it has none.

    Args:
        open_graph: opens a graph of the directory by its role.
    """
    tower = directory.manifest.text_tower
    if tower is None:
        return None, None
    session = open_graph("text")
    tokenizer = load_tokenizer(directory.file("text_tokenizer"))
    return TextEncoder(session, TextTowerTokenizer(tokenizer, tower)), session


def _unit(vector: Float) -> Float:
    norm = float(np.linalg.norm(vector))
    return vector / np.float32(norm) if norm else vector
