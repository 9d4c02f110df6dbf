"""The emitted decoder against transformers: architectures, dialects, prefill and decode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from tiny_checkpoints import llm_config, save_llava

from edge_atp.errors import ArtifactError, ConfigError
from edge_atp.runtime.kv_cache import KvCache, make_kv_cache
from edge_atp.runtime.manifest import LlmSpec
from edge_atp.runtime.sessions import open_session
from edge_atp.runtime.sessions.base import SessionOptions
from export.architecture import LlmConfig, read_llava
from export.decoder import emit_decoder
from export.dialects import load_dialect
from export.graph import GraphBuilder

LENGTH, STEPS, MAX_KV = 21, 6, 64
ONNXRUNTIME = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("llama", {"head_dim": 32}),
    "llama3-rope": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "linear-rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
    ),
    "mistral-window": ("mistral", {"sliding_window": 8}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {"num_key_value_heads": 4}),
}


def llm_spec(config: LlmConfig) -> LlmSpec:
    return LlmSpec(
        config.layers,
        config.heads,
        config.kv_heads,
        config.head_dim,
        config.hidden,
        config.vocab,
        config.rope_theta,
        MAX_KV,
        config.eos_token_ids,
        sliding_window=config.sliding_window,
    )


def load_decoder(checkpoint: Path, dialect: str, folder: Path, external: bool = False) -> KvCache:
    model = read_llava(checkpoint)
    weights = folder / "decoder.weights" if external else None
    graph = GraphBuilder("decoder", weights, load_dialect(dialect).opset)
    emit_decoder(graph, model.tensors, model.llm, dialect=dialect, max_kv=MAX_KV)
    graph.save(folder / "decoder.onnx")
    session = open_session(folder / "decoder.onnx", "ort-cpu", SessionOptions(num_threads=1))
    return make_kv_cache(dialect, session, llm_spec(model.llm))


def reference_logits(checkpoint: Path, embeds: np.ndarray) -> np.ndarray:
    """Logits of every position from transformers in float32, (S, vocab)."""
    model = transformers.LlavaForConditionalGeneration.from_pretrained(
        str(checkpoint), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        return np.asarray(model(inputs_embeds=torch.from_numpy(embeds)[None]).logits[0])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: save_llava(tmp_path_factory.mktemp(name), llm_config(kind, **changes))
        for name, (kind, changes) in VARIANTS.items()
    }


@pytest.mark.parametrize("dialect", ["ort-gqa", "prim17", "prim18", "std24"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_prefill_and_decode_match_transformers(
    checkpoints: dict[str, Path], variant: str, dialect: str, tmp_path: Path
) -> None:
    if (variant, dialect) == ("mistral-window", "ort-gqa") and ONNXRUNTIME < (1, 24):
        pytest.skip("GroupQueryAttention with a window differs in onnxruntime 1.23 (seen: 1.23.2)")
    embeds = np.random.default_rng(2).normal(size=(LENGTH + STEPS, 64)).astype(np.float32)
    expected = reference_logits(checkpoints[variant], embeds)
    cache = load_decoder(checkpoints[variant], dialect, tmp_path)
    logits = [cache.forward(embeds[:LENGTH])]
    logits += [cache.forward(embeds[i : i + 1]) for i in range(LENGTH, LENGTH + STEPS)]
    np.testing.assert_allclose(np.stack(logits), expected[LENGTH - 1 :], atol=1e-4, rtol=1e-4)
    assert np.ptp(expected[LENGTH - 1 :], axis=0).max() > 0.1  # the steps differ from each other


@pytest.mark.parametrize("dialect", ["ort-gqa", "prim17", "prim18", "std24"])
def test_truncated_cache_continues_as_if_new(
    checkpoints: dict[str, Path], dialect: str, tmp_path: Path
) -> None:
    embeds = np.random.default_rng(3).normal(size=(LENGTH, 64)).astype(np.float32)
    cache = load_decoder(checkpoints["llama"], dialect, tmp_path)
    straight = cache.forward(embeds)
    cache.truncate(12)
    assert cache.length == 12
    np.testing.assert_allclose(cache.forward(embeds[12:]), straight, atol=1e-5)


def test_external_weights_are_the_same_weights(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    embeds = np.random.default_rng(4).normal(size=(LENGTH, 64)).astype(np.float32)
    inside = load_decoder(checkpoints["llama"], "ort-gqa", tmp_path / "a").forward(embeds)
    outside = load_decoder(checkpoints["llama"], "ort-gqa", tmp_path / "b", external=True)
    np.testing.assert_array_equal(outside.forward(embeds), inside)
    size = (tmp_path / "b" / "decoder.onnx").stat().st_size
    assert size < (tmp_path / "a" / "decoder.onnx").stat().st_size / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_storage_types(tmp_path: Path, dtype: torch.dtype) -> None:
    checkpoint = save_llava(tmp_path / "llava", llm_config("llama"), dtype=dtype)
    embeds = np.random.default_rng(6).normal(size=(LENGTH, 64)).astype(np.float32)
    logits = load_decoder(checkpoint, "ort-gqa", tmp_path).forward(embeds)
    np.testing.assert_allclose(logits, reference_logits(checkpoint, embeds)[-1], atol=1e-4)


def test_missing_tensor_is_named(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    model = read_llava(checkpoints["llama"])
    del model.tensors._locations["llm.layers.1.mlp.up_proj.weight"]
    graph = GraphBuilder("decoder")
    with pytest.raises(ArtifactError, match=r"'llm.layers.1.mlp.up_proj.weight' is missing"):
        emit_decoder(graph, model.tensors, model.llm, dialect="ort-gqa", max_kv=MAX_KV)


def test_unknown_dialect_lists_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"'prim99'.*ort-gqa, prim17, prim18, std24"):
        load_dialect("prim99")
