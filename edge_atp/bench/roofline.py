"""Times that a device's published peaks allow: the larger of compute and memory traffic per stage.

A projection, not a measurement. It counts matrix products, weights and the KV cache; it knows
nothing of other work on the device, of clocks that drop, or of how good the engine is beyond one
stated efficiency.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from edge_atp.bench.devices import (
    BANDWIDTH_EFFICIENCY,
    COMPUTE_EFFICIENCY,
    LAYER_OVERHEAD_US,
    Device,
)
from edge_atp.flops import Account, ModelSpec, Plan, Transformer, layer_flops

# Bytes of a weight; int4 with a two-byte scale for every 32.
WEIGHT_BYTES: Mapping[str, float] = {"fp16": 2.0, "int8": 1.0, "int4": 0.5625}
_KV_BYTES = 2.0


@dataclass(frozen=True)
class StageTime:
    """One stage of one answer.

    bound: what limits it, "compute", "memory" or "overhead".
    """

    ms: float
    bound: str


def project_stages(
    device: Device,
    model: ModelSpec,
    plan: Plan,
    costs: Account,
    text_tokens: int,
    answer_tokens: int,
    precision: str,
) -> dict[str, StageTime]:
    """Every stage of one answer.

    Args:
        costs: FLOPs of the plan, convention "engine".
        precision: of the language model's weights; "int8" also computes in int8, "int4" only
            stores and computes in fp16. The ViT is fp16 unless precision is int8.
    """
    peak = 1e12 * (device.int8_tops if precision == "int8" else device.fp16_tflops)
    encoder_bytes = WEIGHT_BYTES["int8" if precision == "int8" else "fp16"]
    weight_bytes = WEIGHT_BYTES[precision]
    kv_per_token = 2 * model.llm.kv_heads * model.llm.head_width * _KV_BYTES
    llm_weights = weight_bytes * (model.llm.layers * layer_weights(model.llm) + _head(model))

    def stage(flops: float, traffic: float, layers: int) -> StageTime:
        return _limit(device, peak, flops, traffic, layers)

    visual = sum(plan.llm_tokens)
    prompt_kv = kv_per_token * (visual + model.llm.layers * text_tokens)
    stages = {
        "vision": stage(
            costs.vision,
            encoder_bytes * model.vision.layers * layer_weights(model.vision),
            model.vision.layers * model.tiles,
        ),
        "project": stage(costs.projector, encoder_bytes * _projector(model), 1),
        "prefill": stage(costs.prefill, llm_weights + prompt_kv, model.llm.layers),
    }
    if plan.text_tower and model.text is not None:
        traffic = encoder_bytes * model.text.layers * layer_weights(model.text)
        stages["text"] = stage(costs.text_tower, traffic, model.text.layers)
    # A selection on the host, as this runtime does it: a few reads of the scores.
    stages["select"] = stage(costs.selection, 0.0, 1 if costs.selection else 0)
    steps = max(0, answer_tokens - 1)
    grown = kv_per_token * model.llm.layers * answer_tokens / 2
    traffic = steps * (llm_weights + prompt_kv + grown)
    stages["decode"] = stage(costs.decode, traffic, steps * model.llm.layers)
    return stages


def weights_bytes(model: ModelSpec, precision: str) -> float:
    """Memory of all weights, embedding table included."""
    encoder = WEIGHT_BYTES["int8" if precision == "int8" else "fp16"]
    towers = [model.vision, *([model.text] if model.text else [])]
    return (
        encoder * (sum(t.layers * layer_weights(t) for t in towers) + _projector(model))
        + WEIGHT_BYTES[precision] * model.llm.layers * layer_weights(model.llm)
        + 2.0 * _head(model)
    )


def layer_weights(spec: Transformer) -> float:
    """Weights of one layer: half the FLOPs of one token without attention."""
    attention_to_itself = 4.0 * spec.heads * spec.head_width
    return (layer_flops(spec, 1, 1, causal=False) - attention_to_itself) / 2


def _limit(device: Device, peak: float, flops: float, traffic: float, layers: int) -> StageTime:
    limits = {
        "compute": 1e3 * flops / (peak * COMPUTE_EFFICIENCY),
        "memory": 1e3 * traffic / (1e9 * device.bandwidth_gb_s * BANDWIDTH_EFFICIENCY),
        "overhead": layers * LAYER_OVERHEAD_US / 1e3,
    }
    bound = max(limits, key=lambda name: limits[name])
    return StageTime(limits[bound], bound)


def _head(model: ModelSpec) -> float:
    return float(model.llm.width * model.vocab)


def _projector(model: ModelSpec) -> float:
    return float(sum(a * b for a, b in pairwise(model.projector)))
