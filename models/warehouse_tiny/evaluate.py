"""Exact match and grounding of a checkpoint on freshly rendered or stored scenes.

A short answer is right when every greedy token is: feeding the expected answer and comparing the
arg-max at each place decides that in one pass, without decoding (equal to greedy decoding for exact
match; captions are scored by token accuracy here). Run:
``python -m models.warehouse_tiny.evaluate CHECKPOINT --split test --scenes 1000``.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.warehouse_tiny import vocabulary as v
from models.warehouse_tiny.decoder import run_packed
from models.warehouse_tiny.encoder import ImageFeatures, encode_image, encode_text, normalise
from models.warehouse_tiny.model import WarehouseModel, load_checkpoint
from models.warehouse_tiny.packing import AskedQuestion, QuestionTokenizer, pack
from models.warehouse_tiny.questions import questions_for
from models.warehouse_tiny.scenes import SceneStore, StoredScene
from models.warehouse_tiny.selection import atp_scores, top_k
from models.warehouse_tiny.tokenizer import train_tokenizer

OBJECT_FAMILIES = ("exist", "exist_shelf", "colour", "what", "where", "gripper_colour", "hazard")
METHODS = ("atp", "text", "cls_topk", "random")


@dataclass
class Tally:
    """Right answers and kept target shares by family."""

    right: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    grounding: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Means: ``all`` over short answers, ``min`` the worst family, one entry a family."""
        families = {name: float(np.mean(marks)) for name, marks in self.right.items()}
        short = [m for name, marks in self.right.items() if name != "caption" for m in marks]
        found = {"all": float(np.mean(short)) if short else 0.0, "questions": float(len(short))}
        named = {name: score for name, score in families.items() if name != "caption"}
        if named:
            found["min"] = min(named.values())
        if self.grounding:
            found["grounding"] = float(np.mean(self.grounding))
        return found | dict(sorted(families.items()))


@dataclass(frozen=True)
class Setting:
    """One row of the table: a method and a number of kept tokens, or dense."""

    method: str = "dense"
    num_kept: int = v.NUM_PATCHES
    alpha: float = 0.5

    @property
    def name(self) -> str:
        """Key in the result."""
        return "dense" if self.method == "dense" else f"{self.method}@{self.num_kept}"


class Evaluator:
    """Scores a model; holds no state between calls but the tokenizer."""

    def __init__(self, tokenizer: QuestionTokenizer) -> None:
        self.tokenizer = tokenizer

    @torch.no_grad()
    def run(
        self,
        model: WarehouseModel,
        scenes: Iterable[StoredScene],
        split: str,
        settings: list[Setting],
        batch: int = 8,
    ) -> dict[str, dict[str, float]]:
        """Tally every setting over the scenes' questions."""
        tallies = {setting.name: Tally() for setting in settings}
        model.eval()
        group: list[StoredScene] = []
        for scene in scenes:
            group.append(scene)
            if len(group) == batch:
                self._group(model, group, split, settings, tallies)
                group = []
        if group:
            self._group(model, group, split, settings, tallies)
        model.train()
        return {name: tally.summary() for name, tally in tallies.items()}

    def _group(
        self,
        model: WarehouseModel,
        scenes: list[StoredScene],
        split: str,
        settings: list[Setting],
        tallies: dict[str, Tally],
    ) -> None:
        images = torch.from_numpy(np.stack([scene.image for scene in scenes]))
        output = encode_image(model, normalise(images))
        asked = [
            [
                self.tokenizer.ask(question, scene.coverage)
                for question in questions_for(scene.state, scene.coverage, split, scene.seed)
            ]
            for scene in scenes
        ]
        rows = [(s, item) for s, row in enumerate(asked) for item in row]
        text = encode_text(
            model, *self.tokenizer.tower_batch([item.question.text for _, item in rows])
        )
        owner = torch.tensor([s for s, _ in rows])
        relevance = (output.patch_embeds[owner] @ text[:, :, None]).squeeze(-1)
        attention = output.cls_log_attention.exp()[owner]
        for setting in settings:
            tally = tallies[setting.name]
            if setting.method == "dense":
                kept = torch.arange(v.NUM_PATCHES).expand(len(scenes), -1)
                marks = self._score(model, output.patch_features, kept, asked)
                flat = [mark for row in marks for mark in row]
            else:
                seeds = [scenes[s].seed for s, _ in rows]
                kept = keep(setting, relevance, attention, seeds)
                flat = self._score_rows(model, output, owner, kept, [item for _, item in rows])
                _ground(tally, kept, [item for _, item in rows])
            for (_, item), mark in zip(rows, flat, strict=True):
                tally.right[item.question.family].append(mark)

    def _score_rows(
        self,
        model: WarehouseModel,
        output: ImageFeatures,
        owner: Tensor,
        kept: Tensor,
        asked: list[AskedQuestion],
        chunk: int = 64,
    ) -> list[float]:
        """One question a row, each with its own kept patches."""
        marks: list[float] = []
        for first in range(0, len(asked), chunk):
            part = slice(first, first + chunk)
            features = output.patch_features[owner[part]]
            index = kept[part][..., None].expand(-1, -1, features.shape[-1])
            rows = [[item] for item in asked[part]]
            scored = self._score(model, features.gather(1, index), kept[part], rows)
            marks += [row[0] for row in scored]
        return marks

    def _score(
        self,
        model: WarehouseModel,
        features: Tensor,
        kept: Tensor,
        asked: list[list[AskedQuestion]],
    ) -> list[list[float]]:
        """1.0 for an exact answer; captions: share of right tokens."""
        packed = pack(model, asked, features, kept, self.tokenizer.prefix_ids)
        logits, _ = run_packed(model, packed.rows)
        right = (logits.argmax(-1) == packed.targets).numpy()
        owner = packed.question_index.numpy()
        found = []
        for b, row in enumerate(asked):
            marks = [right[b][owner[b] == i] for i in range(len(row))]
            found.append(
                [
                    float(m.mean() if item.question.family == "caption" else m.all())
                    for m, item in zip(marks, row, strict=True)
                ]
            )
        return found


def keep(setting: Setting, relevance: Tensor, attention: Tensor, seeds: list[int]) -> Tensor:
    """(Q, K) kept patches of every question."""
    if setting.method == "random":
        scores = torch.stack(
            [
                torch.from_numpy(np.random.default_rng([seed, i]).random(v.NUM_PATCHES))
                for i, seed in enumerate(seeds)
            ]
        )
    else:
        alpha = {"atp": setting.alpha, "text": 1.0, "cls_topk": 0.0}[setting.method]
        scores = atp_scores(relevance, attention, alpha)
    return top_k(scores, setting.num_kept)


def _ground(tally: Tally, kept: Tensor, asked: list[AskedQuestion]) -> None:
    """Share of the queried object's patches that were kept, for questions about objects."""
    for row, item in zip(kept.numpy(), asked, strict=True):
        mask = item.question.patch_mask
        if item.question.family in OBJECT_FAMILIES and mask.any():
            tally.grounding.append(float(mask[row].sum() / mask.sum()))


def parse_settings(names: list[str]) -> list[Setting]:
    """``dense`` or ``method@kept``; anything else is an error that shows the form."""
    found = []
    for name in names:
        method, _, count = name.partition("@")
        if name == "dense":
            found.append(Setting())
        elif method in METHODS and count.isdigit() and 1 <= int(count) <= v.NUM_PATCHES:
            found.append(Setting(method, int(count)))
        else:
            raise ValueError(f"setting is {name!r}; write dense or one of {METHODS} as atp@64")
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--split", choices=v.SPLITS, default="test")
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--data", type=Path, default=Path("out/warehouse_tiny/scenes"))
    parser.add_argument(
        "--settings",
        nargs="+",
        default=["dense", "atp@64", "atp@32", "cls_topk@64", "cls_topk@32", "random@64"],
    )
    arguments = parser.parse_args()
    settings = parse_settings(arguments.settings)
    store = SceneStore(arguments.data, arguments.split, arguments.scenes)
    evaluator = Evaluator(QuestionTokenizer(train_tokenizer()))
    scenes = (store[seed] for seed in range(arguments.scenes))
    result = evaluator.run(load_checkpoint(arguments.checkpoint), scenes, arguments.split, settings)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
