"""The CLIP text encoder: found beside the vision tower, emitted as ``text.onnx``.

Sources: a Hugging Face folder (CLIPTextModelWithProjection or a whole CLIPModel), or an open_clip
model as ``open_clip:<name>/<pretrained tag or file>``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from edge_atp.errors import ArtifactError
from export.checkpoint import TensorStore, read_config
from export.graph import GraphBuilder
from export.layers import FUSED_DIALECTS, clip_layer, layer_norm


@dataclass(frozen=True)
class TextTower:
    """A CLIP text encoder and the visual projection of its joint space.

    visual_projection: (P, D) of the vision side.
    tokenizer: path of its ``tokenizer.json``.
    load_reference: loads the original in torch, a callable from token ids (1, T) to (1, P).
    """

    source: str
    hidden: int
    layers: int
    heads: int
    context_length: int
    activation: str
    norm_eps: float
    embed_dim: int
    bos_token_id: int
    eos_token_id: int
    tensors: TensorStore
    visual_projection: NDArray[Any]
    tokenizer: Path
    load_reference: Callable[[], Callable[[Any], Any]]


def load_text_tower(source: str) -> TextTower:
    """Open a text tower given as a folder or as ``open_clip:<name>/<tag or file>``.

    Raises:
        ArtifactError: it cannot be read, or is no CLIP text tower.
    """
    if source.startswith("open_clip:"):
        from export.open_clip_tower import read_open_clip

        tower: TextTower = read_open_clip(source[len("open_clip:") :])
        return tower
    return read_text_tower(Path(source))


def read_text_tower(folder: Path) -> TextTower:
    """Read a Hugging Face CLIP text tower with the visual projection beside it.

    The folder holds ``config.json`` (clip_text_model or clip), safetensors with ``text_model.*``,
    ``text_projection.weight`` and ``visual_projection.weight`` (in any of its files), and
    ``tokenizer.json``.
    Raises:
        ArtifactError: a file or tensor is missing, or it is no CLIP text tower.
    """
    config = read_config(folder)
    if config.get("model_type") == "clip":
        config = {**config.get("text_config", {}), "projection_dim": config["projection_dim"]}
    elif config.get("model_type") != "clip_text_model":
        raise ArtifactError(
            f"{folder} is a {config.get('model_type')!r} checkpoint; a text tower is clip or"
            " clip_text_model"
        )
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise ArtifactError(f"{tokenizer} is missing; save the text tower's fast tokenizer there")
    tensors = TensorStore(folder, canonical_text_name)
    eos, bos = _special_ids(config, tokenizer)
    return TextTower(
        source=folder.name,
        hidden=int(config["hidden_size"]),
        layers=int(config["num_hidden_layers"]),
        heads=int(config["num_attention_heads"]),
        context_length=int(config.get("max_position_embeddings", 77)),
        activation=config.get("hidden_act", "quick_gelu"),
        norm_eps=float(config.get("layer_norm_eps", 1e-5)),
        embed_dim=tensors.shape("text.text_projection.weight")[0],
        bos_token_id=bos,
        eos_token_id=eos,
        tensors=tensors,
        visual_projection=tensors.get("visual_projection.weight"),
        tokenizer=tokenizer,
        load_reference=lambda: _load_hugging_face(folder),
    )


def _load_hugging_face(folder: Path) -> Callable[[Any], Any]:
    import torch
    import transformers

    model = transformers.CLIPTextModelWithProjection.from_pretrained(
        str(folder), dtype=torch.float32
    ).eval()
    return lambda input_ids: model(input_ids=input_ids).text_embeds


def canonical_text_name(stored: str) -> str | None:
    """The name the exporter uses for a tensor of a text tower; None for all others."""
    if stored.startswith("text_model."):
        return "text." + stored[len("text_model.") :]
    if stored == "text_projection.weight":
        return "text.text_projection.weight"
    return stored if stored == "visual_projection.weight" else None


def _special_ids(config: dict[str, Any], tokenizer: Path) -> tuple[int, int]:
    """End and start token; configurations of early CLIP checkpoints state a wrong eos (2)."""
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(tokenizer)).encode("a").ids
    eos, bos = int(config.get("eos_token_id", -1)), int(config.get("bos_token_id", -1))
    if len(ids) < 3:
        raise ArtifactError(
            f"{tokenizer} adds no start and end token around a text; save it with its"
            " post-processor"
        )
    if (ids[0], ids[-1]) != (bos, eos) and eos != 2:
        raise ArtifactError(
            f"{tokenizer} wraps texts in tokens {ids[0]} and {ids[-1]}; config.json says"
            f" {bos} and {eos}"
        )
    return ids[-1], ids[0]


def emit_text_tower(
    graph: GraphBuilder, tower: TextTower, *, dialect: str, with_tokens: bool = False
) -> None:
    """Emit the text graph.

    Inputs: input_ids, attention_mask (1, T) int64. Output: text_embed (1, P), the projection of
    the last attended token. Attention is causal, so padding after it has no influence.

    Args:
        with_tokens: also put out text_tokens (1, T, P), the projection of every token.
    """
    ids = graph.input("input_ids", TensorProto.INT64, [1, "tokens"])
    mask = graph.input("attention_mask", TensorProto.INT64, [1, "tokens"])
    x = _run_layers(graph, tower, ids, fused=dialect in FUSED_DIALECTS)
    count = graph.reduce("ReduceSum", mask, 1, keepdims=False)
    last = graph.node("Sub", count, graph.ints(1))
    if not with_tokens:
        x = graph.node("Gather", x, last, axis=1)
    normed = layer_norm(graph, tower.tensors, "text.final_layer_norm", x, tower.norm_eps)
    weight = np.ascontiguousarray(tower.tensors.get("text.text_projection.weight").T)
    x = graph.node("MatMul", normed, graph.weight("text.text_projection.weight", weight))
    if with_tokens:
        graph.output("text_tokens", x, TensorProto.FLOAT, [1, "tokens", tower.embed_dim])
        x = graph.node("Gather", x, last, axis=1)
    embed = graph.node("Squeeze", x, graph.ints(1))
    graph.output("text_embed", embed, TensorProto.FLOAT, [1, tower.embed_dim])


def _run_layers(graph: GraphBuilder, tower: TextTower, ids: str, *, fused: bool) -> str:
    """Embed token ids (1, T) and run every layer; (1, T, D)."""
    tensors = tower.tensors
    prefix = "text.embeddings"
    table = graph.weight(
        f"{prefix}.token_embedding.weight", tensors.get(f"{prefix}.token_embedding.weight")
    )
    positions = graph.weight(
        f"{prefix}.position_embedding.weight", tensors.get(f"{prefix}.position_embedding.weight")
    )
    length = graph.node("Shape", ids, start=1, end=2)
    used = graph.node("Slice", positions, graph.ints(0), length, graph.ints(0))
    x = graph.node("Add", graph.node("Gather", table, ids, axis=0), used)
    # The fused operator builds the mask by itself.
    bias = "causal" if fused else _causal_bias(graph, length)
    for index in range(tower.layers):
        x, _, _ = clip_layer(
            graph,
            tensors,
            f"text.encoder.layers.{index}",
            x,
            tower.heads,
            tower.hidden // tower.heads,
            tower.norm_eps,
            tower.activation,
            fused=fused,
            causal_bias=bias,
        )
    return x


def _causal_bias(graph: GraphBuilder, length: str) -> str:
    """(1, 1, T, T) float32: 0 where a token may look, a large negative number elsewhere."""
    count = graph.node("Squeeze", length, graph.ints(0))
    zero, one = graph.constant(np.array(0, np.int64)), graph.constant(np.array(1, np.int64))
    steps = graph.node("Range", zero, count, one)
    rows = graph.node("Unsqueeze", steps, graph.ints(1))
    ahead = graph.node("Greater", graph.node("Unsqueeze", steps, graph.ints(0)), rows)
    bias = graph.node(
        "Where", ahead, graph.scalar(float(np.finfo(np.float32).min)), graph.scalar(0.0)
    )
    return graph.node("Unsqueeze", bias, graph.ints(0, 1))
