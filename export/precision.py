"""Precisions an export can have: how linear layers are written, and what parity must hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import ConfigError
from export.linear_forms import (
    LinearForm,
    block_linear,
    dynamic_int8_linear,
    float_linear,
    half_linear,
    qdq_block_linear,
    qdq_linear,
)

Ranges = Mapping[str, NDArray[np.float32]]

# Holds at every precision: two different inputs must not give the same output.
_DIFFER = {"other_image_same_features": 0.0, "other_prompt_same_logits": 0.0}
_EXACT_GRAPHS = {
    **_DIFFER,
    "graph_kept_sets_differing": 0.0,
    "prompts_differing": 0.0,
    "cut_images_without_common_patch": 0.0,
}


@dataclass(frozen=True)
class Precision:
    """One precision.

    compute: what the manifest states.
    forms: linear form per graph role; roles not named stay in float.
    limits: gates by name; what has no limit is measured and recorded.
    dialects: dialects that have the operators; empty for all.
    calibrated: kinds of graphs written as Q/DQ with ranges from ``calibration.calibrate``.
    stated: what the manifest says about the quantisation.
    backends: those that have the operators, by name; empty for all that read the dialect.
    """

    compute: str
    limits: Mapping[str, float]
    forms: Mapping[str, LinearForm] = field(default_factory=dict)
    dialects: tuple[str, ...] = ()
    calibrated: tuple[str, ...] = ()
    stated: Mapping[str, str] = field(default_factory=dict)
    backends: tuple[str, ...] = ()

    def form(self, kind: str, ranges: Mapping[str, Ranges]) -> LinearForm:
        """The linear form of graphs of that kind.

        Args:
            ranges: by kind, for kinds that are calibrated.
        """
        if kind in self.calibrated:
            return qdq_linear(ranges[kind], _SENSITIVE)
        return self.forms.get(kind, float_linear)


_FP32 = Precision(
    "fp32",
    {
        **_EXACT_GRAPHS,
        "patch_features_relative_l2": 1e-4,
        "cls_attention_max_abs": 1e-6,
        "groups_relative_l2": 1e-5,
        "groups_cls_attention_max_abs": 1e-6,
        "cut_features_relative_l2": 1e-4,
        "cut_cls_attention_max_abs": 5e-6,
        "cut_jaccard_distance": 0.0,
        "cls_embed_relative_l2": 1e-4,
        "last_cls_attention_max_abs": 5e-6,
        "patch_keys_relative_l2": 1e-4,
        "last_patch_keys_relative_l2": 1e-4,
        "patch_embeds_relative_l2": 1e-4,
        "text_embed_relative_l2": 1e-4,
        "image_embeds_relative_l2": 1e-4,
        "logits_max_abs": 1e-3,
        "kept_jaccard_distance": 0.0,
        "kept_jaccard_distance_worst": 0.0,
        "token_disagreement": 0.0,
    },
)
# Rounding moves patches across the keep boundary; beyond one in twenty on average the selection
# itself has changed. Accuracy on a labelled set is measured apart: it decides whether to ship.
_QUANTISED = {
    **_EXACT_GRAPHS,
    "text_embed_relative_l2": 1e-4,
    "groups_relative_l2": 0.05,
    "kept_jaccard_distance": 0.05,
    "cut_jaccard_distance": 0.05,
    "accuracy_drop": 0.01,
}
_FP16 = {
    **_EXACT_GRAPHS,
    "text_embed_relative_l2": 1e-4,
    "patch_features_relative_l2": 1e-2,
    "patch_keys_relative_l2": 1e-2,
    "last_patch_keys_relative_l2": 1e-2,
    "patch_embeds_relative_l2": 1e-2,
    "groups_relative_l2": 1e-2,
    "cls_embed_relative_l2": 1e-2,
    "cut_features_relative_l2": 1e-2,
    "cut_jaccard_distance": 0.03,
    "kept_jaccard_distance": 0.03,
    "token_disagreement": 0.02,
}
_HALF_ROLES = dict.fromkeys(("vision", "project", "decoder"), half_linear)
# Rounding in the vision encoder's first layer moves the most patches across the keep boundary.
_SENSITIVE = ("vision.encoder.layers.0.",)
_DYNAMIC_INT8 = {"vision": dynamic_int8_linear, "decoder": dynamic_int8_linear}
# Not std24: ONNX Runtime 1.31 rewrites QuantizeLinear of opset 24 to int8 into a graph that it
# refuses itself, so nothing could be compared.
_STANDARD = ("prim17", "prim18")
# Several entries of one name are the same precision in the operators of different dialects.
_ALL = (
    ("fp32", _FP32),
    ("fp16", Precision("fp16", _FP16, _HALF_ROLES)),
    (
        "int8",
        Precision(
            "int8",
            _QUANTISED,
            _DYNAMIC_INT8,
            ("ort-gqa",),
            stated={
                "weights": "int8 per channel, 7 bits of it used",
                "activations": "uint8 at run time, per tensor",
            },
            # Elsewhere ONNX Runtime would copy every operand to the CPU and back, and say nothing.
            backends=("ort-cpu",),
        ),
    ),
    (
        "int8",
        Precision(
            "int8",
            _QUANTISED,
            dialects=_STANDARD,
            calibrated=("vision", "decoder"),
            stated={"weights": "int8 per channel, Q/DQ", "activations": "int8 calibrated, Q/DQ"},
        ),
    ),
    (
        "int8-weights",
        Precision(
            "int8-weights",
            _QUANTISED,
            {"decoder": block_linear(8)},
            ("ort-gqa",),
            stated={"weights": "int8 in blocks of 32"},
        ),
    ),
    (
        "int4-weights",
        Precision(
            "int4-weights",
            _QUANTISED,
            {"decoder": block_linear(4)},
            ("ort-gqa",),
            stated={"weights": "int4 in blocks of 32"},
        ),
    ),
    (
        "int4-weights",
        Precision(
            "int4-weights",
            _QUANTISED,
            {"decoder": qdq_block_linear(64)},
            ("std24",),
            stated={"weights": "int4 in blocks of 64, Q/DQ"},
        ),
    ),
)
NAMES = tuple(dict.fromkeys(name for name, _ in _ALL))


def get_precision(name: str, dialect: str) -> Precision:
    """The precision of that name in the operators of that dialect.

    Raises:
        ConfigError: unknown, or the dialect has no operators for it.
    """
    named = [precision for known, precision in _ALL if known == name]
    if not named:
        raise ConfigError(f"precision is {name!r}; choose one of {', '.join(NAMES)}")
    for precision in named:
        if not precision.dialects or dialect in precision.dialects:
            return precision
    possible = sorted({d for precision in named for d in precision.dialects})
    raise ConfigError(f"precision {name} needs dialect {' or '.join(possible)}, not {dialect}")
