"""Several images and several turns in one prompt: the engine against the original model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny_checkpoints import PROMPT

from edge_atp.pruning import load
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.model_dir import ModelDirectory
from edge_atp.runtime.prompt import Turn
from edge_atp.types import VisualSignals
from export import recipe
from export.settings import ExportSettings

QUESTIONS = ("what is on the left?", "where is the red box on the shelf?", "count: 1 2 3")
NEW_TOKENS = 6
PATCHES = 16


@pytest.fixture(scope="module", params=["ort-gqa", "prim18", "std24"])
def engine(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Engine:
    settings = ExportSettings(
        checkpoint, prompt=PROMPT, max_kv=256, dialect=request.param, parity_new_tokens=2
    )
    out = tmp_path_factory.mktemp(request.param) / "model"
    directory: ModelDirectory = recipe.export_model(settings, out, progress=lambda step: None)
    return Engine.load(directory, "ort-cpu", num_threads=1)


@pytest.fixture(scope="module")
def original(checkpoint: Path) -> transformers.LlavaForConditionalGeneration:
    return transformers.LlavaForConditionalGeneration.from_pretrained(
        str(checkpoint), dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(8).normal(size=(3, 3, 28, 28)).astype(np.float32)


def answer_of(
    model: transformers.LlavaForConditionalGeneration,
    ids: np.ndarray,
    pictures: np.ndarray,
    kept: Sequence[np.ndarray],
) -> tuple[int, ...]:
    """Greedy tokens of the original model, image token i replaced by the kept patches of image i.

    Its own embedding and projector, positions without gaps.
    """
    with torch.inference_mode():
        features = model.get_image_features(pixel_values=torch.from_numpy(pictures))
        features = getattr(features, "pooler_output", features)
        rows, image = [], 0
        for token in ids.tolist():
            if token == model.config.image_token_id:
                rows.append(features[image][torch.from_numpy(kept[image])])
                image += 1
            else:
                rows.append(model.get_input_embeddings()(torch.tensor([token])))
        output = model.generate(
            inputs_embeds=torch.cat(rows)[None],
            attention_mask=torch.ones((1, sum(map(len, rows))), dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
        )
    return tuple(t for t in output[0].tolist() if t != 3)


def kept_patches(engine: Engine, picture: np.ndarray, num_kept: int) -> tuple:
    vision = engine.encode_image(picture[None])
    signals = VisualSignals(cls_attention=vision.cls_attention)
    kept = load("cls_topk").select(signals, num_kept).kept_indices
    return kept, engine.project(vision.patch_features, kept)


def test_two_images_dense_are_what_generate_computes(
    engine: Engine, original: transformers.LlavaForConditionalGeneration, pictures: np.ndarray
) -> None:
    """Through the original's own placing of image tokens, not only its parts."""
    images = [kept_patches(engine, picture, PATCHES)[1] for picture in pictures[:2]]
    prompt = engine.embed_prompt(QUESTIONS[1], images)
    tokens = engine.prompt_tokens(QUESTIONS[1], 2)
    ids = torch.from_numpy(np.repeat(tokens.ids, np.where(tokens.is_image, PATCHES, 1)))[None]
    inputs = {
        "input_ids": ids,
        "pixel_values": torch.from_numpy(pictures[:2]),
        "attention_mask": torch.ones_like(ids),
    }
    with torch.inference_mode():
        logits = np.asarray(original(**inputs).logits[0, -1])
        output = original.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    np.testing.assert_allclose(engine.last_logits(prompt.inputs_embeds), logits, atol=2e-4)
    expected = tuple(t for t in output[0, ids.shape[1] :].tolist() if t != 3)
    assert engine.generate(prompt, max_new_tokens=NEW_TOKENS).token_ids == expected
    swapped = engine.embed_prompt(QUESTIONS[1], images[::-1])
    assert np.abs(engine.last_logits(swapped.inputs_embeds) - logits).max() > 1e-2


def test_images_keep_different_numbers_of_patches(
    engine: Engine, original: transformers.LlavaForConditionalGeneration, pictures: np.ndarray
) -> None:
    both = [kept_patches(engine, p, count) for p, count in zip(pictures, (3, 16, 7), strict=True)]
    prompt = engine.embed_prompt(QUESTIONS[0], [tokens for _, tokens in both], keep_prefix=True)
    assert prompt.num_visual_tokens == 26
    ours = engine.generate(prompt, max_new_tokens=NEW_TOKENS)
    ids = engine.prompt_tokens(QUESTIONS[0], 3).ids
    expected = answer_of(original, ids, pictures, [kept for kept, _ in both])
    assert ours.token_ids == expected
    assert len(expected) > 1


def test_turns_on_kept_keys_and_values_are_the_whole_history_in_the_original(
    engine: Engine, original: transformers.LlavaForConditionalGeneration, pictures: np.ndarray
) -> None:
    """Three turns, the last with a second image; every turn resumes from the one before."""
    first = kept_patches(engine, pictures[0], 5)
    second = kept_patches(engine, pictures[1], 9)
    history: tuple[Turn, ...] = ()
    held = None
    for number, question in enumerate(QUESTIONS):
        images = {0: [first[1]], 2: [second[1]]}.get(number, [])
        prompt = engine.embed_prompt(question, images, history, keep_prefix=True)
        ours = engine.generate(prompt, max_new_tokens=NEW_TOKENS, held=held)
        if held is not None:
            assert engine.reused_tokens == len(held.rows)
        ids = engine._builder._tokens(question, len(images), history).ids
        kept = [first[0]] if number < 2 else [first[0], second[0]]
        assert ours.token_ids == answer_of(original, ids, pictures[: len(kept)], kept)
        held = engine.hold(ours.token_ids)
        history = (*history, Turn(question, tuple(images), ours.token_ids))
        # Something else in between takes the cache.
        engine.last_logits(np.ones((4, prompt.inputs_embeds.shape[1]), np.float32))
