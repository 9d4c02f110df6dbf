"""``select_atp.onnx``: ATP's scores and top-K as a graph, for engines that stay on the device.

The same rule as ``edge_atp.pruning.atp`` with head-mean CLS attention; alpha and K are inputs.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from edge_atp.errors import ArtifactError
from export.graph import GraphBuilder


def emit_selection(
    graph: GraphBuilder, num_patches: int, embed_dim: int, relevance_source: str
) -> None:
    """Emit the selection graph.

    Inputs: cls_attention (1, N), patch_embeds (1, N, P), text_embed (1, P), alpha (), num_kept
    (1,) int64. Outputs: kept_indices (K,) int64 ascending, scores (N,).

    Raises:
        ArtifactError: the relevance source is not one this graph can compute.
    """
    if relevance_source not in ("raw", "negated"):
        raise ArtifactError(
            f"relevance_source is {relevance_source!r}; the selection graph computes raw, negated"
        )
    attention = graph.input("cls_attention", TensorProto.FLOAT, [1, num_patches])
    patches = graph.input("patch_embeds", TensorProto.FLOAT, [1, num_patches, embed_dim])
    text = graph.input("text_embed", TensorProto.FLOAT, [1, embed_dim])
    alpha = graph.input("alpha", TensorProto.FLOAT, [])
    num_kept = graph.input("num_kept", TensorProto.INT64, [1])

    relevance = _cosine(graph, patches, text)
    if relevance_source == "negated":
        relevance = graph.node("Neg", relevance)
    saliency = graph.node("Reshape", attention, graph.ints(-1))
    rest = graph.node("Sub", graph.scalar(1.0), alpha)
    scores = graph.node(
        "Add",
        graph.node("Mul", alpha, _min_max(graph, relevance)),
        graph.node("Mul", rest, _min_max(graph, saliency)),
    )
    # TopK of ONNX Runtime breaks ties to the lowest index, as the stable sort of the host does.
    _, order = graph.nodes("TopK", [scores, num_kept], 2, axis=0, largest=1, sorted=1)
    ascending = sort_ascending(graph, order, num_kept)
    graph.output("kept_indices", ascending, TensorProto.INT64, ["num_kept"])
    graph.output("scores", scores, TensorProto.FLOAT, [num_patches])


def _cosine(graph: GraphBuilder, patches: str, text: str) -> str:
    """(N,) cosine of each patch with the text; zero vectors give 0."""
    rows = graph.node("Squeeze", patches, graph.ints(0))
    dots = graph.reduce("ReduceSum", graph.node("Mul", rows, text), 1, keepdims=False)
    norms = graph.node(
        "Mul",
        graph.reduce("ReduceL2", rows, 1, keepdims=False),
        graph.reduce("ReduceL2", text, 1, keepdims=False),
    )
    zero = graph.node("Equal", norms, graph.scalar(0.0))
    safe = graph.node("Where", zero, graph.scalar(1.0), norms)
    return graph.node("Where", zero, graph.scalar(0.0), graph.node("Div", dots, safe))


def _min_max(graph: GraphBuilder, scores: str) -> str:
    """Scale (N,) to [0, 1]; constant scores become zeros."""
    low = graph.reduce("ReduceMin", scores, 0, keepdims=True)
    span = graph.node("Sub", graph.reduce("ReduceMax", scores, 0, keepdims=True), low)
    flat = graph.node("Equal", span, graph.scalar(0.0))
    safe = graph.node("Where", flat, graph.scalar(1.0), span)
    return graph.node("Div", graph.node("Sub", scores, low), safe)


def sort_ascending(graph: GraphBuilder, indices: str, count: str) -> str:
    """Sort (K,) int64; ``count`` is (1,) int64 and holds K."""
    # TopK of the negated indices: exact in int64, and engines that have TopK have this too.
    negated = graph.node("Mul", indices, graph.constant(np.array(-1, np.int64)))
    values, _ = graph.nodes("TopK", [negated, count], 2, axis=0, largest=1, sorted=1)
    return graph.node("Mul", values, graph.constant(np.array(-1, np.int64)))
