"""Text in and out of the models: the prompt, the CLIP text windows, and detokenisation.

Uses the ``tokenizers`` library alone. Knows nothing of graphs or embeddings.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edge_atp.errors import ArtifactError, BudgetExceededError, InvalidQueryError
from edge_atp.runtime.manifest import PromptSpec, TextTowerSpec

# No tokenizer in use packs more characters than this into one token on average; longer texts
# are refused before the tokenizer spends time on them.
_MAX_CHARS_PER_TOKEN = 32
_REMEMBERED_WORDS = 512

# Characters [start, end) of a text that a token stands for.
Span = tuple[int, int]
_IMAGE = re.compile(r"\{image\}\s*")
_LAST_WORD = re.compile(r"\S+\s*$")


def load_tokenizer(path: Path) -> Any:
    """Read a ``tokenizer.json``.

    Raises:
        ArtifactError: the file is damaged.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the binding raises a bare Exception
        raise ArtifactError(f"{path} is no valid tokenizer ({error}); export again") from error
    # Lengths are this module's business: files saved with them on would cut prompts silently.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # It remembers every new word, 10,000 of them by default: 0.4 kB each of small blocks that keep
    # malloc's heap from being used again (benchmarks/LOG.md). A few save as much time.
    resize = getattr(tokenizer.model, "_resize_cache", None)
    if resize:
        resize(_REMEMBERED_WORDS)
    return tokenizer


@dataclass(frozen=True)
class PromptTokens:
    """Token ids of a prompt; ``is_image`` (S,) marks the positions the images' tokens fill."""

    ids: NDArray[np.int64]
    is_image: NDArray[np.bool_]


class PromptTokenizer:
    """Prompt template and tokenizer of the language model.

    Args:
        end_token_id: closes an answer.
    """

    def __init__(self, tokenizer: Any, spec: PromptSpec, end_token_id: int = -1) -> None:
        self._tokenizer = tokenizer
        self._spec = spec
        self._end_token_id = end_token_id
        self._turn_template = spec.turn_template or turn_template(spec.template)
        self._special = tuple(
            token.content
            for token in tokenizer.get_added_tokens_decoder().values()
            if token.special and token.content.strip()
        )

    def encode(self, question: str, num_images: int) -> PromptTokens:
        """Token ids of the prompt, one image token per image.

        Raises:
            InvalidQueryError: an empty question, or one that contains a special token of the
                model (it could forge a turn or an image).
            BudgetExceededError: the prompt's text is longer than prompt.max_text_tokens.
        """
        return self._fill(self._spec.template, question, num_images, starts=True)

    def encode_turn(self, question: str, num_images: int) -> PromptTokens:
        """Token ids of a question that follows an answer; see ``encode``."""
        template = self._turn_template
        # Without images their line goes too.
        template = template if num_images else _IMAGE.sub("", template)
        return self._fill(template, question, num_images, starts=False)

    def closed_answer(self, answer_ids: Sequence[int]) -> PromptTokens:
        """An answer of an earlier turn with its end token."""
        ids = np.array([*answer_ids, self._end_token_id], np.int64)
        return PromptTokens(ids, np.zeros(len(ids), np.bool_))

    def _fill(self, template: str, question: str, num_images: int, starts: bool) -> PromptTokens:
        self._check("the question", question)
        slot = self._spec.image_separator.join([self._spec.image_token] * num_images)
        # The question is inserted last: braces in it are text.
        head, tail = template.replace("{image}", slot).split("{question}")
        text = head + question.strip() + tail
        ids = np.array(self._tokenizer.encode(text, add_special_tokens=starts).ids, np.int64)
        is_image = ids == self._spec.image_token_id
        if int(is_image.sum()) != num_images:
            raise ArtifactError(
                f"the prompt has {int(is_image.sum())} image tokens for {num_images} images:"
                " prompt.image_token_id does not belong to this tokenizer; export again"
            )
        num_text = int(ids.size) - num_images
        if num_text > self._spec.max_text_tokens:
            raise BudgetExceededError(
                f"the prompt has {num_text} text tokens; this model takes"
                f" {self._spec.max_text_tokens} (prompt.max_text_tokens); shorten the question"
            )
        return PromptTokens(ids, is_image)

    def encode_text(self, text: str) -> NDArray[np.int64]:
        """Token ids (M,) of a text alone, without template or special tokens."""
        ids = self._tokenizer.encode(text.strip(), add_special_tokens=False).ids
        return np.array(ids, np.int64)

    def encode_spans(self, text: str) -> tuple[NDArray[np.int64], list[Span]]:
        """Token ids (M,) of a text alone, as it stands, and the characters of each token."""
        return _ids_and_spans(self._tokenizer, text)

    def encode_choices(self, choices: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids of each possible answer, as it would follow the prompt.

        Raises:
            InvalidQueryError: fewer than two, an empty one, one with a special token, or two that
                are the same tokens.
        """
        if len(choices) < 2:
            raise InvalidQueryError(f"choices has {len(choices)} entries; give two or more")
        # Answers follow the prompt behind a space unless the prompt ends with one.
        lead = "" if self._spec.template[-1:].isspace() else " "
        seen: dict[tuple[int, ...], str] = {}
        for number, text in enumerate(choices):
            self._check(f"choices[{number}]", text)
            ids = tuple(self._tokenizer.encode(lead + text.strip(), add_special_tokens=False).ids)
            if ids in seen:
                raise InvalidQueryError(
                    f"choices[{number}] {text!r} is the same answer as {seen[ids]!r}"
                )
            seen[ids] = text
        return list(seen)

    def decode(self, token_ids: list[int]) -> str:
        """Text of generated tokens, special tokens removed."""
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        return text

    def _check(self, name: str, text: str) -> None:
        if not text.strip():
            raise InvalidQueryError(f"{name} is empty; give its text")
        limit = self._spec.max_text_tokens * _MAX_CHARS_PER_TOKEN
        if len(text) > limit:
            raise BudgetExceededError(
                f"{name} has {len(text)} characters; this model takes at most"
                f" {self._spec.max_text_tokens} text tokens; shorten it"
            )
        for special in self._special:
            if special in text:
                raise InvalidQueryError(f"{name} contains the special token {special!r}; remove it")


def turn_template(template: str) -> str:
    """The template of a turn that follows another, from the one that starts a prompt.

    What stands before the user's role (a system prompt) is said once: the turn begins with the
    last word before the first slot, such as "USER:", "[INST]" or "<|im_start|>user".
    """
    first = min(template.index("{image}"), template.index("{question}"))
    role = _LAST_WORD.search(template[:first])
    return (role.group() if role else "") + template[first:]


class IncrementalText:
    """Decodes a growing token list, holding back characters whose bytes are not complete."""

    _REPLACEMENT = "\ufffd"

    def __init__(self, prompt: PromptTokenizer) -> None:
        self._prompt = prompt
        self._shown = ""

    def update(self, token_ids: list[int]) -> str | None:
        """The text so far, or None when the new token adds nothing that can be shown yet."""
        text = self._prompt.decode(token_ids).rstrip(self._REPLACEMENT).strip()
        if text == self._shown:
            return None
        self._shown = text
        return text


class TextTowerTokenizer:
    """Splits a text into the windows that the CLIP text encoder can read."""

    def __init__(self, tokenizer: Any, spec: TextTowerSpec) -> None:
        self._tokenizer = tokenizer
        self._spec = spec

    def windows(self, text: str) -> list[NDArray[np.int64]]:
        """Token ids of each window, (1, T <= context_length), start and end tokens included.

        A text that fits gives one window; a longer one is cut into the fewest windows of even
        length, so that no window holds only a stray token.
        """
        ids = self._tokenizer.encode(text.strip(), add_special_tokens=False).ids
        room = self._spec.context_length - 2
        count = max(1, -(-len(ids) // room))
        return [
            np.array([[self._spec.bos_token_id, *part.tolist(), self._spec.eos_token_id]], np.int64)
            for part in np.array_split(np.array(ids, np.int64), count)
        ]

    def token_windows(self, text: str) -> tuple[list[NDArray[np.int64]], list[Span]]:
        """Windows (1, T) filled one after the other, and the characters of every token in them.

        For embeddings of single tokens, which depend on the text before them in their window:
        cut where a model attached by ``edge_atp.hf`` cuts, so that both see the same.
        """
        ids, spans = _ids_and_spans(self._tokenizer, text)
        room = self._spec.context_length - 2
        starts = range(0, max(len(ids), 1), room)
        bos, eos = self._spec.bos_token_id, self._spec.eos_token_id
        parts = [ids[start : start + room].tolist() for start in starts]
        return [np.array([[bos, *part, eos]], np.int64) for part in parts], spans


def _ids_and_spans(tokenizer: Any, text: str) -> tuple[NDArray[np.int64], list[Span]]:
    encoded = tokenizer.encode(text, add_special_tokens=False)
    spans = [(int(start), int(end)) for start, end in encoded.offsets]
    return np.array(encoded.ids, np.int64), spans
