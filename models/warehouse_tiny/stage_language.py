"""Stages 2 to 4: the language model (``language``), then everything together (``joint``,
``robust``; the last on scenes whose viewpoint and colours are changed as well).

Curriculum over the share of the stage that is done: questions move from single attributes to
colour and type together; the picture from all that matters (every patch that shows something,
background dropped at random) to the token sets that pruning leaves. The first heads of two layers
are told where to look, which turns the slow discovery of content -> place lookups into minutes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.warehouse_tiny import questions as q
from models.warehouse_tiny.config import TrainConfig
from models.warehouse_tiny.decoder import run_packed
from models.warehouse_tiny.diversify import diversify
from models.warehouse_tiny.encoder import ImageFeatures, encode_image, encode_text, normalise
from models.warehouse_tiny.facts import SceneView
from models.warehouse_tiny.heads import DenseHeads
from models.warehouse_tiny.model import WarehouseModel
from models.warehouse_tiny.packing import AskedQuestion, PackedBatch, QuestionTokenizer, pack
from models.warehouse_tiny.parallel import rank, world_size
from models.warehouse_tiny.scenes import SceneStore, StoredScene, scene_order
from models.warehouse_tiny.selection import atp_scores, top_k
from models.warehouse_tiny.stage_vision import VisionBatch, build_vision_batch, vision_losses
from models.warehouse_tiny.vocabulary import NUM_PATCHES

FAMILY_ODDS = {
    "exist": 1.4,
    "exist_shelf": 1.5,
    "colour": 0.7,
    "what": 1.4,
    "where": 2.0,
    "count_all": 1.8,
    "count_shelf": 1.0,
    "count_colour": 2.0,
    "gripper": 0.8,
    "gripper_colour": 0.4,
    "empty": 0.7,
    "free": 0.8,
    "hazard": 0.8,
    "caption": 0.3,
}
TOKEN_WEIGHT = {"caption": 0.3}
KEEP_COUNTS = (160, 128, 96, 64, 48, 32, 24, 16)
ALPHA = 0.5
MIN_TARGET_KEPT = 0.6


@dataclass(frozen=True)
class LanguageBatch:
    """One step: pictures (inside ``vision``), questions, and how many patches rows keep.

    mode per row: ``shown`` keeps everything visible that matters, ``atp`` follows the row's first
    question, ``cls`` and ``random`` ignore the questions.
    """

    vision: VisionBatch
    asked: list[list[AskedQuestion]]
    coverage: Tensor
    count: int
    modes: tuple[str, ...]
    random_scores: Tensor
    focus: tuple[Tensor, Tensor]


class LanguageStage:
    """Builds batches and computes the loss; all but ``language`` also train the towers."""

    def __init__(
        self, name: str, config: TrainConfig, store: SceneStore, tokenizer: QuestionTokenizer
    ) -> None:
        self.name = name
        self.joint = name != "language"
        self.config = config
        self.settings = config.stage(name)
        self.store = store
        self.tokenizer = tokenizer
        self.encode = encode_image

    def make_batch(self, step: int) -> LanguageBatch:
        """The batch of a step; a pure function of the seed and the step."""
        stage_id = {"language": 2, "joint": 3, "robust": 4}[self.name]
        rng = np.random.default_rng([self.config.seed, stage_id, step, rank()])
        # Rows of one step share their number of kept patches, in every process.
        shared = np.random.default_rng([self.config.seed, stage_id, step])
        order = scene_order(
            self.config.seed + stage_id, step, self.settings.batch_scenes, len(self.store)
        )
        scenes = [self.store[seed] for seed in order[rank() :: world_size()]]
        if self.settings.diversify:
            scenes = [diversify(scene, rng) for scene in scenes]
        done = 1.0 if self.joint else step / self.settings.steps
        texts = self.config.texts_per_scene if self.joint else 0
        vision = build_vision_batch(scenes, rng, NUM_PATCHES, texts, self.settings, self.tokenizer)
        asked = [self._questions(scene, rng, done) for scene in scenes]
        count, modes = _kept(done, len(scenes), shared, rng)
        return LanguageBatch(
            vision=vision,
            asked=asked,
            coverage=torch.from_numpy(np.stack([s.coverage[1:].sum(0) for s in scenes])),
            count=count,
            modes=modes,
            random_scores=torch.from_numpy(rng.random((len(scenes), NUM_PATCHES))).float(),
            focus=self.tokenizer.tower_batch([row[0].question.text for row in asked]),
        )

    def _questions(
        self, scene: StoredScene, rng: np.random.Generator, done: float
    ) -> list[AskedQuestion]:
        """Distinct questions of one scene; the first is the one that pruning follows."""
        view = SceneView(scene.state, scene.coverage)
        families = list(FAMILY_ODDS)
        odds = np.array(list(FAMILY_ODDS.values()))
        pair_share = float(np.interp(done, [0.15, 0.5], [0.25, 0.6]))
        noise = float(np.interp(done, [0.1, 0.5], [0.2, 1.0]))
        found: dict[tuple[str, str], AskedQuestion] = {}
        for pick in rng.choice(len(families), self.config.questions_per_scene, p=odds / odds.sum()):
            fact = q.draw_fact(view, rng, families[pick], pair_share)
            if fact is None:
                continue
            question = q.make_question(
                fact, q.as_typed(q.word(fact, rng), rng, noise), scene.coverage
            )
            found[(fact.family, question.text)] = self.tokenizer.ask(question, scene.coverage)
        if not found:  # an almost hidden rack: there is always the arm or the floor to ask about
            fact = q.draw_fact(view, rng, "hazard") or q.draw_fact(view, rng, "gripper")
            assert fact is not None
            question = q.make_question(fact, q.word(fact, rng), scene.coverage)
            found[("", "")] = self.tokenizer.ask(question, scene.coverage)
        return list(found.values())

    def loss(
        self, model: WarehouseModel, heads: DenseHeads, batch: LanguageBatch, step: int
    ) -> tuple[Tensor, dict[str, float]]:
        """Answer loss plus where-to-look loss; with the towers the losses of stage 1 as well."""
        pixels = normalise(batch.vision.images)
        total, log = pixels.new_zeros(()), {}
        if self.joint:
            output = self.encode(model, pixels, None)
            vision, log = vision_losses(model, heads, batch.vision, output)
            total = 0.5 * vision
        else:
            with torch.no_grad():
                output = self.encode(model, pixels, None)
        with torch.no_grad():
            kept = keep_patches(model, batch, output)
        asked = [_answerable(row, kept[b]) for b, row in enumerate(batch.asked)]
        index = kept[..., None].expand(-1, -1, output.patch_features.shape[-1])
        features = output.patch_features.gather(1, index)
        packed = pack(model, asked, features, kept, self.tokenizer.prefix_ids, TOKEN_WEIGHT)
        logits, looked = run_packed(
            model, packed.rows, self.config.guided_layers, self.config.guided_heads
        )
        answer, guide, accuracy = answer_losses(packed, logits, looked)
        log |= {"answer": answer.item(), "guide": guide.item(), "token_acc": accuracy}
        log["kept"] = batch.count
        return total + answer + 0.15 * guide, log


def _kept(
    done: float, rows: int, shared: np.random.Generator, rng: np.random.Generator
) -> tuple[int, tuple[str, ...]]:
    """Number of kept patches of a step and the mode of each row."""
    if shared.random() < 0.2:
        return NUM_PATCHES, ("random",) * rows
    pruned_share = float(np.interp(done, [0.3, 0.7], [0.0, 0.85]))
    if shared.random() >= pruned_share:
        return 160, ("shown",) * rows
    count = int(KEEP_COUNTS[shared.integers(len(KEEP_COUNTS))])
    modes = rng.choice(["atp", "cls", "random"], rows, p=[0.6, 0.25, 0.15])
    return count, tuple(str(mode) for mode in modes)


def keep_patches(model: WarehouseModel, batch: LanguageBatch, output: ImageFeatures) -> Tensor:
    """(B, K) ascending patch indices of every row by its mode."""
    attention = output.cls_log_attention.exp()
    relevance = torch.zeros_like(attention)
    if "atp" in batch.modes:
        text = encode_text(model, *batch.focus)
        relevance = (output.patch_embeds @ text[:, :, None]).squeeze(-1)
    by_mode = {
        "atp": atp_scores(relevance, attention, ALPHA),
        "cls": attention,
        "random": batch.random_scores,
        "shown": batch.random_scores + 2.0 * (batch.coverage > 0.15),
    }
    scores = torch.stack([by_mode[mode][row] for row, mode in enumerate(batch.modes)])
    return top_k(scores, batch.count)


def _answerable(asked: list[AskedQuestion], kept: Tensor) -> list[AskedQuestion]:
    """The questions whose target survived; the first one always stays."""
    index = kept.numpy()
    found = []
    for position, item in enumerate(asked):
        weight = item.question.patch_weight
        total = weight.sum()
        seen = weight[index].sum() >= MIN_TARGET_KEPT * total if total else len(index) >= 64
        if position == 0 or seen:
            found.append(item)
    return found


def answer_losses(
    packed: PackedBatch, logits: Tensor, looked: list[Tensor]
) -> tuple[Tensor, Tensor, float]:
    """Weighted cross-entropy, attention guidance, token accuracy of the short answers."""
    known = packed.targets >= 0
    target = packed.targets.clamp_min(0)
    losses = -logits.log_softmax(-1).gather(-1, target[..., None]).squeeze(-1)
    weights = packed.weights * known
    answer = (losses * weights).sum() / weights.sum().clamp_min(1.0)
    mass = packed.look_at.square()
    share = mass.sum(-1, keepdim=True)
    there = (share.squeeze(-1) > 0.3) & known
    goal = mass / share.clamp_min(1e-6)
    guide = logits.new_zeros(())
    for seen in looked:
        miss = -(goal[:, None] * seen).sum(-1).mean(1)
        guide = guide + (miss * there).sum() / there.sum().clamp_min(1)
    right = (logits.argmax(-1) == packed.targets) & (packed.weights == 1.0)
    accuracy = right.sum() / ((packed.weights == 1.0) & known).sum().clamp_min(1)
    return answer, guide, accuracy.item()
