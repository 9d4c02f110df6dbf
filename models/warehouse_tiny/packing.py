"""Tokenise questions and lay them out behind the visual tokens of their image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from models.warehouse_tiny import tokenizer as tok
from models.warehouse_tiny.decoder import PackedRows
from models.warehouse_tiny.model import WarehouseModel
from models.warehouse_tiny.questions import Question, target_weight
from models.warehouse_tiny.vocabulary import FIRST_ITEM, FIRST_PANEL, HAZARD, HELD_ITEM, NUM_SLOTS

_BEFORE, _AFTER = tok.PROMPT_TEMPLATE.split("<image>")


@dataclass(frozen=True)
class AskedQuestion:
    """A tokenised question.

    Attributes:
        question: its text, answer and target.
        prompt_ids: tokens after the image up to the answer.
        answer_ids: answer tokens and the end token.
        look_at: (len(answer_ids), 256) float32, the patches each answer token is read from; a row
            of zeros where there is nothing to look at.
    """

    question: Question
    prompt_ids: list[int]
    answer_ids: list[int]
    look_at: np.ndarray


class QuestionTokenizer:
    """Turns questions into ids with the checkpoint's own tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tower = tok.text_tower_tokenizer(tokenizer)
        self.prefix_ids = [tok.BOS_ID, *self._ids(_BEFORE)]

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def ask(self, question: Question, coverage: np.ndarray) -> AskedQuestion:
        """Tokenise one question about a scene with the given (NUM_ENTITIES, 256) coverage."""
        prompt = self._ids(_AFTER.format(question=question.text))
        answer: list[int] = []
        look: list[np.ndarray] = []
        for text, entities in _answer_pieces(question):
            ids = self._ids(text)
            answer += ids
            if entities == question.entities:
                weight = question.patch_weight
            else:
                weight = target_weight(entities, coverage)
            look += [weight] * len(ids)
        look.append(np.zeros(coverage.shape[1], np.float32))
        return AskedQuestion(question, prompt, [*answer, tok.EOS_ID], np.stack(look))

    def tower_batch(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """(T, L) ids and mask for the text tower, cut to 77 tokens with the end token kept."""
        ids = [self._tower.encode(text).ids for text in texts]
        ids = [row if len(row) <= 77 else [*row[:76], tok.EOS_ID] for row in ids]
        longest = max(map(len, ids))
        table = torch.full((len(ids), longest), tok.PAD_ID)
        mask = torch.zeros(len(ids), longest, dtype=torch.long)
        for i, row in enumerate(ids):
            table[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        return table, mask


def _answer_pieces(question: Question) -> list[tuple[str, tuple[int, ...]]]:
    """The answer cut where its words are about different entities; captions name one each."""
    if question.family != "caption":
        return [(f" {question.answer}", question.entities)]
    pieces: list[tuple[str, tuple[int, ...]]] = []
    slot = 0
    for part in question.answer.rstrip(".").split("; "):
        place, content = part.split(": ")
        pieces.append((f" {place}:", ()))
        names = content.split(", ")
        for i, name in enumerate(names):
            if place in ("gripper", "floor"):
                held = place == "gripper"
                there = (HELD_ITEM,) if held else (HAZARD,)
                end = ";" if held else "."
            else:
                there = (FIRST_ITEM + slot,) if name != "empty" else (FIRST_PANEL + slot,)
                slot += 1
                end = "," if i < len(names) - 1 else ";"
            pieces.append((f" {name}{end}", there))
    assert slot == NUM_SLOTS  # captions list every slot
    return pieces


@dataclass(frozen=True)
class PackedBatch:
    """Packed rows with what is trained on them.

    Attributes:
        rows: inputs of ``run_packed``.
        targets: (B, R) next tokens, -100 for padding.
        weights: (B, R) loss weight of each.
        look_at: (B, R, K) where to look, on the kept visual tokens.
        question_index: (B, R) which question of the row a target belongs to, -1 for padding.
    """

    rows: PackedRows
    targets: Tensor
    weights: Tensor
    look_at: Tensor
    question_index: Tensor


class _Layout:
    """NumPy arrays of a packed batch, filled question by question."""

    def __init__(self, asked: list[list[AskedQuestion]], kept: np.ndarray, start: int) -> None:
        rows, count = kept.shape
        self.stop = start + count
        lengths = [sum(len(a.prompt_ids) + len(a.answer_ids) - 1 for a in row) for row in asked]
        reads = max(sum(len(a.answer_ids) for a in row) for row in asked)
        shape = (rows, self.stop + max(lengths))
        self.kept = kept
        self.ids = np.zeros(shape, np.int64)
        self.positions = np.zeros(shape, np.int64)
        self.segment = np.full(shape, -1, np.int64)
        self.positions[:, : self.stop] = np.arange(self.stop)
        self.segment[:, : self.stop] = 0
        self.read = np.zeros((rows, reads), np.int64)
        self.targets = np.full((rows, reads), -100, np.int64)
        self.weights = np.zeros((rows, reads), np.float32)
        self.owner = np.full((rows, reads), -1, np.int64)
        self.look = np.zeros((rows, reads, count), np.float32)

    def fill_row(self, b: int, row: list[AskedQuestion], weight: dict[str, float]) -> None:
        """Write the questions of one row one after the other."""
        at, r = self.stop, 0
        for q, item in enumerate(row):
            tokens = item.prompt_ids + item.answer_ids[:-1]
            span = slice(at, at + len(tokens))
            self.ids[b, span] = tokens
            self.positions[b, span] = self.stop + np.arange(len(tokens))
            self.segment[b, span] = q + 1
            count = len(item.answer_ids)
            out = slice(r, r + count)
            self.read[b, out] = at + len(item.prompt_ids) - 1 + np.arange(count)
            self.targets[b, out] = item.answer_ids
            self.weights[b, out] = weight.get(item.question.family, 1.0)
            self.look[b, out] = item.look_at[:, self.kept[b]]
            self.owner[b, out] = q
            at, r = at + len(tokens), r + count


def pack(
    model: WarehouseModel,
    asked: list[list[AskedQuestion]],
    features: Tensor,
    kept: Tensor,
    prefix_ids: list[int],
    token_weight: dict[str, float] | None = None,
) -> PackedBatch:
    """Lay out B rows of questions behind their kept visual tokens.

    Args:
        asked: the questions of each row.
        features: (B, K, Dv) consumed features of the kept patches.
        kept: (B, K) their patch indices, ascending.
        prefix_ids: tokens before the image.
        token_weight: loss weight of the tokens of a family, default 1.
    """
    start = len(prefix_ids)
    layout = _Layout(asked, kept.cpu().numpy(), start)
    layout.ids[:, :start] = prefix_ids
    for b, row in enumerate(asked):
        layout.fill_row(b, row, token_weight or {})

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(features.device)

    embeds = model.llm.embed_tokens(tensor(layout.ids))
    image = model.projector(features).to(embeds.dtype)
    rows = PackedRows(
        inputs_embeds=torch.cat([embeds[:, :start], image, embeds[:, layout.stop :]], dim=1),
        position_ids=tensor(layout.positions),
        segment=tensor(layout.segment),
        visual=(start, layout.stop),
        read_positions=tensor(layout.read),
    )
    return PackedBatch(
        rows,
        targets=tensor(layout.targets),
        weights=tensor(layout.weights),
        look_at=tensor(layout.look),
        question_index=tensor(layout.owner),
    )
