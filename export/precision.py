"""Precisions an export can have: how linear layers are written, and what parity must hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edge_atp.errors import ConfigError
from export.linear_forms import (
    LinearForm,
    block_linear,
    dynamic_int8_linear,
    float_linear,
    half_linear,
)

# Holds at every precision: two different inputs must not give the same output.
_DIFFER = {"other_image_same_features": 0.0, "other_prompt_same_logits": 0.0}
_EXACT_GRAPHS = {**_DIFFER, "graph_kept_sets_differing": 0.0, "prompts_differing": 0.0}


@dataclass(frozen=True)
class Precision:
    """One precision.

    compute: what the manifest states.
    forms: linear form per graph role; roles not named stay in float.
    limits: gates by name; what has no limit is measured and recorded.
    dialects: dialects that have the operators; empty for all.
    """

    compute: str
    limits: Mapping[str, float]
    forms: Mapping[str, LinearForm] = field(default_factory=dict)
    dialects: tuple[str, ...] = ()

    def form(self, role: str) -> LinearForm:
        """The linear form of the graph of that role."""
        return self.forms.get(role, float_linear)


_FP32 = Precision(
    "fp32",
    {
        **_EXACT_GRAPHS,
        "patch_features_relative_l2": 1e-4,
        "cls_attention_max_abs": 1e-6,
        "patch_embeds_relative_l2": 1e-4,
        "text_embed_relative_l2": 1e-4,
        "image_embeds_relative_l2": 1e-4,
        "logits_max_abs": 1e-3,
        "kept_jaccard_distance": 0.0,
        "token_disagreement": 0.0,
    },
)
# Rounding moves patches across the keep boundary; beyond one in twenty the selection itself
# has changed. Accuracy on a labelled set is measured apart: it decides whether to ship.
_QUANTISED = {
    **_EXACT_GRAPHS,
    "text_embed_relative_l2": 1e-4,
    "kept_jaccard_distance": 0.05,
    "accuracy_drop": 0.01,
}
_FP16 = {
    **_EXACT_GRAPHS,
    "text_embed_relative_l2": 1e-4,
    "patch_features_relative_l2": 1e-2,
    "patch_embeds_relative_l2": 1e-2,
    "kept_jaccard_distance": 0.03,
    "token_disagreement": 0.02,
}
_HALF_ROLES = dict.fromkeys(("vision", "project", "decoder"), half_linear)
_BY_NAME = {
    "fp32": _FP32,
    "fp16": Precision("fp16", _FP16, _HALF_ROLES),
    "int8": Precision(
        "int8",
        _QUANTISED,
        {"vision": dynamic_int8_linear, "decoder": dynamic_int8_linear},
        ("ort-gqa",),
    ),
    "int8-weights": Precision(
        "int8-weights", _QUANTISED, {"decoder": block_linear(8)}, ("ort-gqa",)
    ),
    "int4-weights": Precision(
        "int4-weights", _QUANTISED, {"decoder": block_linear(4)}, ("ort-gqa",)
    ),
}
NAMES = tuple(_BY_NAME)


def get_precision(name: str, dialect: str) -> Precision:
    """The precision of that name.

    Raises:
        ConfigError: unknown, or the dialect has no operators for it.
    """
    if name not in _BY_NAME:
        raise ConfigError(f"precision is {name!r}; choose one of {', '.join(NAMES)}")
    precision = _BY_NAME[name]
    if precision.dialects and dialect not in precision.dialects:
        raise ConfigError(
            f"precision {name} needs dialect {' or '.join(precision.dialects)}, not {dialect}"
        )
    return precision
