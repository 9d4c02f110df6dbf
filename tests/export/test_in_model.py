"""Cuts inside the encoder and the language model: the engine against the original with hooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_checkpoints import PROMPT, llm_config, save_llava

from edge_atp.hf import attach
from edge_atp.hf.text.transformers_tower import TransformersTower
from edge_atp.pruning import evit, ivtp, sparsevlm, tome, vtw
from edge_atp.pruning.base import InModelPruner
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.in_model import InModelRunner
from edge_atp.runtime.model_dir import ModelDirectory
from edge_atp.runtime.outputs import Generation
from export import recipe
from export.settings import ExportSettings

QUESTION = "where is the red box on the shelf?"
NEW_TOKENS = 8
PATCHES = 16
IVTP = {"group_size": 1, "encoder_layers": 2, "encoder_kept": 9, "llm_layers": 2}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    llm = llm_config("llama", num_hidden_layers=4, rope_parameters={"rope_theta": 100.0})
    return save_llava(tmp_path_factory.mktemp("deep"), llm, vision_layers=4)


def export(checkpoint: Path, tower: Path, out: Path, **changes: Any) -> ModelDirectory:
    given = {"max_kv": 96, "block_layers": 1, "vision_groups": 1, "parity_new_tokens": 2}
    settings = ExportSettings(
        checkpoint, text_tower=str(tower), prompt=PROMPT, **{**given, **changes}
    )
    return recipe.export_model(settings, out, progress=lambda step: None)


@pytest.fixture(scope="module")
def engine(deep: Path, text_tower: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(export(deep, text_tower, tmp_path_factory.mktemp("pieces") / "model"))


def run(
    engine: Engine, pixels: np.ndarray, pruner: InModelPruner, num_kept: int | None = None
) -> tuple[Generation, np.ndarray, dict[int, list[int]]]:
    """The answer, the patches behind the encoder, and the visual tokens behind each LLM cut."""
    runner = InModelRunner(engine)
    if pruner.site == "in_encoder" or isinstance(pruner, ivtp.Method):
        image = runner.encode(pixels, pruner, num_kept)
        prompt, place = runner.prompt(pruner, QUESTION, [image]), image.place
    else:
        place = np.arange(PATCHES)
        features = engine.encode_image(pixels).patch_features
        prompt = engine.embed_prompt(QUESTION, [engine.project(features, place)])
    cut = pruner if pruner.site == "in_llm" else None
    answer = engine.generate(prompt, max_new_tokens=NEW_TOKENS, cut=cut, num_kept=num_kept)
    return answer, place, {layer: kept.tolist() for layer, kept in engine.kept_by_layer.items()}


def hugging_face(
    checkpoint: Path,
    tower: Path,
    engine: Engine,
    pixels: np.ndarray,
    pruner: InModelPruner,
    keep: int | None = None,
) -> tuple[tuple[int, ...], list[int], dict[int, list[int]]]:
    """The same three of the original model with the method attached."""
    model = transformers.LlavaForConditionalGeneration.from_pretrained(
        str(checkpoint), dtype=torch.float32
    ).eval()
    fast = transformers.PreTrainedTokenizerFast
    text = transformers.CLIPTextModelWithProjection.from_pretrained(str(tower), dtype=torch.float32)
    weight = load_file(tower / "visual_projection.safetensors")["visual_projection.weight"].float()
    clip = TransformersTower(
        text.eval(), fast(tokenizer_file=str(tower / "tokenizer.json")), weight
    )
    tokenizer = fast(tokenizer_file=str(checkpoint / "tokenizer.json"))
    handle = attach(model, tokenizer, pruner, keep, text_tower=clip)
    tokens = engine.prompt_tokens(QUESTION, 1)
    ids = np.repeat(tokens.ids, np.where(tokens.is_image, PATCHES, 1))[None]
    with torch.inference_mode():
        output = model.generate(
            input_ids=torch.from_numpy(ids),
            pixel_values=torch.from_numpy(pixels),
            attention_mask=torch.ones(ids.shape, dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            question=QUESTION,
        )
    projector = handle._parts.projector  # None where nothing leaves before the language model
    place = projector.selections[0].kept_indices.tolist() if projector else list(range(PATCHES))
    kept = {layer: per_sample[0].tolist() for layer, per_sample in handle.last_cuts.items()}
    return tuple(t for t in output[0, ids.shape[1] :].tolist() if t != 3), place, kept


CASES = {
    "ivtp-groups-of-1": (ivtp.Method(**{**IVTP, "encoder_layers": 3, "llm_layers": 3}), 4),
    "ivtp-groups-of-2": (ivtp.Method(**{**IVTP, "group_size": 2, "encoder_layers": 4}), 4),
    "ivtp-visual-cls": (ivtp.Method(**{**IVTP, "threshold": 0.99}), 3),
    "ivtp-all-words": (ivtp.Method(**{**IVTP, "threshold": -1.0}), 3),
    "evit-rate": (evit.Method(layers=(0, 2), rate=0.5), None),
    "evit-count": (evit.Method(layers=(1, 2)), 5),
    "tome-count": (tome.Method(num_layers=3), 5),
    "tome-each": (tome.Method(num_merged=3, num_layers=2), None),
    "sparsevlm": (sparsevlm.Method(layers=(1, 2, 3), ratios=(0.6, 0.4, 0.2)), None),
    "sparsevlm-count": (sparsevlm.Method(layers=(1, 3), ratios=(0.5, 0.3)), 4),
    "sparsevlm-rank": (sparsevlm.Method(layers=(2,), ratios=(0.2,), adaptive=True), None),
    "vtw": (vtw.Method(layer=2), None),
}


@pytest.mark.parametrize("name", CASES)
def test_same_tokens_and_cuts_as_the_original_model(
    deep: Path, text_tower: Path, engine: Engine, pixels: np.ndarray, name: str
) -> None:
    pruner, keep = CASES[name]
    ours, place, kept = run(engine, pixels, pruner, keep)
    tokens, their_place, their_kept = hugging_face(deep, text_tower, engine, pixels, pruner, keep)
    assert place.tolist() == their_place
    assert kept == their_kept
    assert ours.token_ids == tokens
