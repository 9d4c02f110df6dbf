"""Cutting tokens between decoder blocks: the engine against the original model with hooks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny_checkpoints import PROMPT, llm_config, save_llava

from edge_atp.errors import ConfigError
from edge_atp.hf import attach
from edge_atp.pruning import atp_progressive, evit, fastv, ivtp, load, pyramiddrop
from edge_atp.pruning.base import InModelPruner
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.model_dir import ModelDirectory
from export import recipe
from export.settings import ExportSettings

QUESTION = "where is the red box on the shelf?"
NEW_TOKENS = 8


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    llm = llm_config("llama", num_hidden_layers=4, rope_parameters={"rope_theta": 100.0})
    return save_llava(tmp_path_factory.mktemp("deep"), llm)


def export(checkpoint: Path, out: Path, block_layers: int) -> ModelDirectory:
    settings = ExportSettings(
        checkpoint, prompt=PROMPT, max_kv=96, block_layers=block_layers, parity_new_tokens=2
    )
    return recipe.export_model(settings, out, progress=lambda step: None)


@pytest.fixture(scope="module")
def blocks(deep: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(export(deep, tmp_path_factory.mktemp("blocks") / "model", 1))


def reference(
    checkpoint: Path, engine: Engine, pixels: np.ndarray, pruner: InModelPruner
) -> tuple[tuple[int, ...], dict[int, list[int]]]:
    """Tokens and kept indices of the original model with the method attached."""
    model = transformers.LlavaForConditionalGeneration.from_pretrained(
        str(checkpoint), dtype=torch.float32
    ).eval()
    handle = attach(model, None, pruner, None)
    tokens = engine.prompt_tokens(QUESTION, 1)
    ids = np.repeat(tokens.ids, np.where(tokens.is_image, 16, 1))[None]
    with torch.inference_mode():
        output = model.generate(
            input_ids=torch.from_numpy(ids),
            pixel_values=torch.from_numpy(pixels),
            attention_mask=torch.ones(ids.shape, dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
        )
    kept = {layer: per_sample[0].tolist() for layer, per_sample in handle.last_cuts.items()}
    return tuple(t for t in output[0, ids.shape[1] :].tolist() if t != 3), kept


@pytest.mark.parametrize(
    "pruner",
    [
        fastv.Method(layer=1, drop_ratio=0.75),
        fastv.Method(layer=2, drop_ratio=0.5),
        pyramiddrop.Method(layers=(1, 3), ratios=(0.5, 0.2)),
    ],
    ids=["fastv-1", "fastv-2", "pyramiddrop"],
)
def test_same_tokens_and_cuts_as_the_original_model(
    deep: Path, blocks: Engine, pixels: np.ndarray, pruner: InModelPruner
) -> None:
    features = blocks.encode_image(pixels).patch_features
    prompt = blocks.embed_prompt(QUESTION, [blocks.project(features, np.arange(16))])
    ours = blocks.generate(prompt, max_new_tokens=NEW_TOKENS, cut=pruner)
    tokens, kept = reference(deep, blocks, pixels, pruner)
    assert {layer: k.tolist() for layer, k in blocks.kept_by_layer.items()} == kept
    assert ours.token_ids == tokens
    dense = blocks.generate(prompt, max_new_tokens=NEW_TOKENS)
    assert blocks.kept_by_layer == {}
    assert dense.token_ids != ours.token_ids or dense.mean_token_prob != ours.mean_token_prob


def test_blocks_hold_only_what_they_saw(blocks: Engine, pixels: np.ndarray) -> None:
    features = blocks.encode_image(pixels).patch_features
    prompt = blocks.embed_prompt(QUESTION, [blocks.project(features, np.arange(16))])
    pruner = load("pyramiddrop", layers=(1, 3), ratios=(0.5, 0.25))
    blocks.generate(prompt, max_new_tokens=1, cut=pruner)
    full = len(prompt.inputs_embeds)
    assert blocks._kv_cache.lengths == (full, full - 8, full - 8, full - 12)


def test_first_progressive_atp_cut_is_the_rule_on_the_models_attention(
    deep: Path, blocks: Engine, pixels: np.ndarray
) -> None:
    features = blocks.encode_image(pixels).patch_features
    prompt = blocks.embed_prompt(QUESTION, [blocks.project(features, np.arange(16))])
    pruner = atp_progressive.Method(layers=(2,), ratios=(0.375,), alpha=0.5)
    blocks.generate(prompt, max_new_tokens=1, cut=pruner)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(
        str(deep), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        embeds = torch.from_numpy(prompt.inputs_embeds)[None]
        attention = model(inputs_embeds=embeds, output_attentions=True).attentions[2][0].numpy()
    visual = np.flatnonzero(prompt.is_visual)
    text = np.arange(visual[-1] + 1, len(prompt.inputs_embeds))
    expected = atp_progressive.rank(
        attention[:, text][:, :, visual], attention[:, visual][:, :, visual], 6, 0.5
    )
    np.testing.assert_array_equal(blocks.kept_by_layer[2], expected.kept_indices)


def test_keeping_all_is_the_identity(blocks: Engine, pixels: np.ndarray) -> None:
    features = blocks.encode_image(pixels).patch_features
    prompt = blocks.embed_prompt(QUESTION, [blocks.project(features, np.arange(16))])
    pruner = fastv.Method(layer=2)
    kept = blocks.generate(prompt, max_new_tokens=NEW_TOKENS, cut=pruner, num_kept=16)
    assert kept == blocks.generate(prompt, max_new_tokens=NEW_TOKENS)


def test_choices_behind_a_cut_prompt(blocks: Engine, pixels: np.ndarray) -> None:
    """Answers are scored one after the other: each must find the cache as the prompt left it."""
    features = blocks.encode_image(pixels).patch_features
    prompt = blocks.embed_prompt(QUESTION, [blocks.project(features, np.arange(16))])
    pruner, choices = fastv.Method(layer=2, drop_ratio=0.5), ("on the left", "on the right", "no")
    together = blocks.score_choices(prompt, choices, cut=pruner)
    lengths = blocks._kv_cache.lengths
    full = len(prompt.inputs_embeds)
    assert lengths == (full, full, full - 8, full - 8)
    alone = blocks.score_choices(prompt, choices[1:], cut=pruner)
    np.testing.assert_allclose(together.log_probs[1:], alone.log_probs, atol=1e-4)
    with pytest.raises(ConfigError, match="decoded tokens or everything"):
        blocks._kv_cache.truncate(full - 1)


def test_wide_blocks_equal_narrow_ones_and_refuse_cuts_inside(
    deep: Path, blocks: Engine, pixels: np.ndarray, tmp_path: Path
) -> None:
    wide = Engine.load(export(deep, tmp_path / "model", 3))
    features = wide.encode_image(pixels).patch_features
    prompt = wide.embed_prompt(QUESTION, [wide.project(features, np.arange(16))])
    assert (
        wide.generate(prompt, max_new_tokens=NEW_TOKENS).token_ids
        == blocks.generate(prompt, max_new_tokens=NEW_TOKENS).token_ids
    )
    with pytest.raises(ConfigError, match=r"before layer 2; this model has 4 .*3 to a block"):
        wide.generate(prompt, max_new_tokens=1, cut=fastv.Method(layer=2))


def test_methods_without_a_rule_and_directories_without_blocks(
    deep: Path, blocks: Engine, pixels: np.ndarray, tmp_path: Path
) -> None:
    features = blocks.encode_image(pixels).patch_features
    prompt = blocks.embed_prompt(QUESTION, [blocks.project(features, np.arange(16))])
    with pytest.raises(ConfigError, match=r"evit cannot run .*language model; atp_progressive, fa"):
        blocks.generate(prompt, max_new_tokens=1, cut=evit.Method(layers=(1,)))
    with pytest.raises(ConfigError, match=r"ivtp starts in the vision encoder and needs its CLS"):
        blocks.generate(prompt, max_new_tokens=1, cut=ivtp.Method(llm_layers=3))
    whole = Engine.load(export(deep, tmp_path / "model", 0))
    with pytest.raises(ConfigError, match=r"one graph; export with --block-layers"):
        whole.generate(prompt, max_new_tokens=1, cut=fastv.Method(layer=2))
