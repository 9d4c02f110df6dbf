"""``project.onnx``: the kept patches only, through the LLaVA projector to the LLM's width."""

from __future__ import annotations

from onnx import TensorProto

from export.architecture import Llava
from export.graph import GraphBuilder
from export.layers import FUSED_DIALECTS, activation, linear


def emit_projector(graph: GraphBuilder, model: Llava, *, dialect: str) -> None:
    """Inputs patch_features (1, N, D), kept_indices (K,); output image_embeds (1, K, H).

    N is free: methods that merge tokens hand in fewer than the encoder made.
    """
    width, hidden = model.vision.hidden, model.llm.hidden
    features = graph.input("patch_features", TensorProto.FLOAT, [1, "num_features", width])
    kept = graph.input("kept_indices", TensorProto.INT64, ["num_kept"])
    x = graph.node("Gather", features, kept, axis=1)
    x = linear(graph, model.tensors, "projector.linear_1", x)
    x = activation(graph, model.projector_activation, x, fused=dialect in FUSED_DIALECTS)
    x = linear(graph, model.tensors, "projector.linear_2", x)
    graph.output("image_embeds", x, TensorProto.FLOAT, [1, "num_kept", hidden])
