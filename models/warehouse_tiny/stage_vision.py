"""Stage 1: the image and text towers.

Losses: dense heads on the consumed features; questions against the patches they are about, in the
joint space; captions against CLS; CLS attention of the consumed layer against the saliency target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as nnf

from models.warehouse_tiny import questions as q
from models.warehouse_tiny.augment import augment
from models.warehouse_tiny.config import StageConfig, TrainConfig
from models.warehouse_tiny.encoder import ImageFeatures, encode_image, encode_text, normalise
from models.warehouse_tiny.facts import FAMILIES, Fact, SceneView
from models.warehouse_tiny.heads import DenseHeads
from models.warehouse_tiny.labels import patch_labels, saliency_target, scene_codes
from models.warehouse_tiny.model import WarehouseModel
from models.warehouse_tiny.packing import QuestionTokenizer
from models.warehouse_tiny.parallel import rank, world_size
from models.warehouse_tiny.scenes import SceneStore, StoredScene, scene_order
from models.warehouse_tiny.vocabulary import NUM_PATCHES

_CONTRAST_FAMILIES = tuple(f for f in FAMILIES if f != "caption")
_PHRASE_SHARE = 0.25


@dataclass(frozen=True)
class VisionBatch:
    """Everything of one step; tensors on the CPU.

    images (B, 224, 224, 3) uint8; keep (B, n) or None; labels name -> (B, n); saliency (B, n);
    text ids and mask (T, L); text_row (T,) image of each text; text_target (T, n) sums to 1;
    caption ids and mask (C, L); caption_row (C,).
    """

    images: Tensor
    keep: Tensor | None
    labels: dict[str, Tensor]
    saliency: Tensor
    text: tuple[Tensor, Tensor]
    text_row: Tensor
    text_target: Tensor
    caption: tuple[Tensor, Tensor]
    caption_row: Tensor


class VisionStage:
    """Builds batches and computes the loss of stage 1."""

    name = "vision"

    def __init__(
        self, config: TrainConfig, store: SceneStore, tokenizer: QuestionTokenizer
    ) -> None:
        self.config = config
        self.store = store
        self.tokenizer = tokenizer
        self.encode = encode_image

    def make_batch(self, step: int) -> VisionBatch:
        """The batch of a step; a pure function of the seed and the step."""
        stage = self.config.vision
        partial = step < self.config.partial_share * stage.steps
        count = self.config.partial_patches if partial else NUM_PATCHES
        order = scene_order(self.config.seed, step, stage.batch_scenes, len(self.store))
        order = order[rank() :: world_size()]
        rng = np.random.default_rng([self.config.seed, 1, step, rank()])
        scenes = [self.store[seed] for seed in order]
        return build_vision_batch(
            scenes, rng, count, self.config.texts_per_scene, stage, self.tokenizer
        )

    def loss(
        self, model: WarehouseModel, heads: DenseHeads, batch: VisionBatch, step: int
    ) -> tuple[Tensor, dict[str, float]]:
        """Total loss and what to log."""
        output = self.encode(model, normalise(batch.images), batch.keep)
        return vision_losses(model, heads, batch, output)


class _BatchBuilder:
    """Collects pictures, labels and texts of a step."""

    def __init__(self, count: int, tokenizer: QuestionTokenizer) -> None:
        self.count = count
        self.tokenizer = tokenizer
        self.images: list[np.ndarray] = []
        self.keeps: list[np.ndarray] = []
        self.labels: list[dict[str, np.ndarray]] = []
        self.saliency: list[np.ndarray] = []
        self.texts: list[tuple[int, str, np.ndarray]] = []
        self.captions: list[tuple[int, str]] = []

    def add(self, scene: StoredScene, rng: np.random.Generator, texts: int, amount: float) -> None:
        """Augment and label one scene and draw the texts it is contrasted with."""
        row = len(self.images)
        self.images.append(augment(scene.image, rng, amount))
        keep = _sample_patches(scene.coverage, self.count, rng)
        self.keeps.append(keep)
        codes = scene_codes(scene.state)
        full = patch_labels(scene.coverage, codes)
        self.labels.append({name: value[keep] for name, value in full.items()})
        target = saliency_target(scene.coverage, codes)[keep]
        self.saliency.append(target / max(target.sum(), 1e-6))
        view = SceneView(scene.state, scene.coverage)
        for text, weight in _contrast_texts(view, scene.coverage, rng, texts):
            kept = weight[keep]
            if kept.sum() > 0.2:
                self.texts.append((row, text, kept / kept.sum()))
        fact = q.draw_fact(view, rng, "caption") if rng.random() < 0.5 else None
        if fact is not None:
            self.captions.append((row, fact.answer))

    def build(self) -> VisionBatch:
        """Stack what was collected."""
        names = self.labels[0]
        targets = [target for _, _, target in self.texts]
        nothing = np.zeros((0, self.count), np.float32)
        return VisionBatch(
            images=torch.from_numpy(np.stack(self.images)),
            keep=None if self.count == NUM_PATCHES else torch.from_numpy(np.stack(self.keeps)),
            labels={
                name: torch.from_numpy(np.stack([item[name] for item in self.labels]))
                for name in names
            },
            saliency=torch.from_numpy(np.stack(self.saliency)),
            text=self.tokenizer.tower_batch([text for _, text, _ in self.texts] or ["nothing"]),
            text_row=torch.tensor([row for row, _, _ in self.texts], dtype=torch.long),
            text_target=torch.from_numpy(np.stack(targets) if targets else nothing),
            caption=self.tokenizer.tower_batch([text for _, text in self.captions] or ["nothing"]),
            caption_row=torch.tensor([row for row, _ in self.captions], dtype=torch.long),
        )


def build_vision_batch(
    scenes: list[StoredScene],
    rng: np.random.Generator,
    count: int,
    texts_per_scene: int,
    stage: StageConfig,
    tokenizer: QuestionTokenizer,
) -> VisionBatch:
    """Augment, label and word a list of scenes; ``count`` patches of each are kept."""
    builder = _BatchBuilder(count, tokenizer)
    for scene in scenes:
        builder.add(scene, rng, texts_per_scene, stage.augment)
    return builder.build()


def _sample_patches(coverage: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Ascending random patches; those that show something are three times as likely."""
    if count >= NUM_PATCHES:
        return np.arange(NUM_PATCHES)
    odds = np.where(coverage[1:].sum(0) > 0.2, 3.0, 1.0)
    scores = rng.random(NUM_PATCHES) ** (1.0 / odds)
    return np.sort(np.argpartition(-scores, count)[:count])


def _contrast_texts(
    view: SceneView, coverage: np.ndarray, rng: np.random.Generator, count: int
) -> list[tuple[str, np.ndarray]]:
    """Questions (and short phrases) with the weight of the patches they are about."""
    found = []
    for _ in range(count):
        family = _CONTRAST_FAMILIES[rng.integers(len(_CONTRAST_FAMILIES))]
        fact = q.draw_fact(view, rng, family, pair_share=0.5)
        if fact is None or not fact.entities:
            continue
        short = rng.random() < _PHRASE_SHARE
        text = _phrase(fact) if short else q.as_typed(q.word(fact, rng), rng)
        weight = np.zeros(coverage.shape[1], np.float32)
        for entity in fact.entities:
            sharp = coverage[entity] ** 2
            if sharp.sum() > 0.15:
                weight += sharp / sharp.sum()
        found.append((text, weight))
    return found


def _phrase(fact: Fact) -> str:
    """A noun phrase for what a fact is about."""
    if "thing" in fact.fields and fact.family != "exist_shelf":
        return "the " + fact.fields["thing"]
    if "n" in fact.fields:
        return f"slot {fact.fields['n']} of the {fact.fields['shelf']} shelf"
    if fact.family == "hazard":
        return fact.answer
    return fact.answer if fact.family == "gripper" else q.word(fact, np.random.default_rng(0))


def vision_losses(
    model: WarehouseModel, heads: DenseHeads, batch: VisionBatch, output: ImageFeatures
) -> tuple[Tensor, dict[str, float]]:
    """The weighted sum of all stage 1 losses."""
    dense, accuracy = heads(output.patch_features, batch.labels)
    saliency = -(batch.saliency * output.cls_log_attention).sum(-1).mean()
    scale = model.logit_scale.clamp(max=4.6).exp()
    total = dense + 0.4 * saliency
    log = {"dense": dense.item(), "saliency": saliency.item()}
    if len(batch.text_row):
        text = encode_text(model, *batch.text)
        logits = scale * (output.patch_embeds[batch.text_row] @ text[:, :, None]).squeeze(-1)
        contrast = -(batch.text_target * logits.log_softmax(-1)).sum(-1)
        entropy = (batch.text_target.clamp_min(1e-9).log() * batch.text_target).sum(-1)
        total = total + contrast.mean()
        log["contrast"] = (contrast + entropy).mean().item()
        hit = batch.text_target.gather(1, logits.argmax(-1, keepdim=True)) > 0
        log["hit"] = hit.float().mean().item()
    if len(batch.caption_row) > 1:
        caption = encode_text(model, *batch.caption)
        logits = scale * caption @ output.image_embeds[batch.caption_row].T
        target = torch.arange(len(logits))
        both = nnf.cross_entropy(logits, target) + nnf.cross_entropy(logits.T, target)
        total = total + 0.05 * both
        log["caption"] = both.item() / 2
    log |= {f"acc_{name}": value.item() for name, value in accuracy.items()}
    return total, log
