"""Compute and memory of a vision-language model under a pruning plan.

``table(named("llava-1.5-7b"), keeps=[64, 192])`` compares every method with the dense model;
``account(model, make_plan(...), text_tokens=...)`` gives one figure's parts. Knows nothing of time:
FLOPs are not latency.
"""

from edge_atp.flops.count import (
    CONVENTIONS,
    decode_flops,
    kv_cache_bytes,
    layer_flops,
    prefill_flops,
    projector_flops,
    text_tower_flops,
    vision_flops,
)
from edge_atp.flops.models import (
    MODELS,
    ModelSpec,
    Transformer,
    from_config,
    named,
    with_visual_tokens,
)
from edge_atp.flops.plan import Plan, make_plan
from edge_atp.flops.table import Account, Row, account, relative_prefill, table

__all__ = [
    "CONVENTIONS",
    "MODELS",
    "Account",
    "ModelSpec",
    "Plan",
    "Row",
    "Transformer",
    "account",
    "decode_flops",
    "from_config",
    "kv_cache_bytes",
    "layer_flops",
    "make_plan",
    "named",
    "prefill_flops",
    "projector_flops",
    "relative_prefill",
    "table",
    "text_tower_flops",
    "vision_flops",
    "with_visual_tokens",
]
