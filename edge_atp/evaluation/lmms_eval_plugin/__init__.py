"""Pruned models for lmms-eval: VQAv2, GQA, COCO captions, TextVQA, POPE, MME, MMBench, ScienceQA,
SEED, VizWiz, MM-Vet, LLaVA-Bench in the wild and every other image task it has.

    pip install 'edge-atp[lmms]'
    python -m lmms_eval --model edge_atp_engine --tasks gqa \\
        --model_args model=DIR,method=atp,keep=64
    python -m lmms_eval --model edge_atp_hf --tasks pope,mme \\
        --model_args pretrained=llava-hf/llava-1.5-7b-hf,method=divprune,keep=64

lmms-eval finds the models through the entry-point group ``lmms_eval.models`` of this package;
nothing of lmms-eval or torch is imported before one is chosen. Data sets come from lmms-eval.
Video and audio tasks are refused. Tasks over text alone need ``edge_atp_hf``.
"""

from __future__ import annotations

from typing import Any

_MODELS = "edge_atp.evaluation.lmms_eval_plugin.models"


def manifests() -> list[Any]:
    """The models of this package, as lmms-eval's registry takes them (0.6 and later)."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [
        ModelManifest("edge_atp_engine", simple_class_path=f"{_MODELS}.EdgeAtpEngine"),
        ModelManifest("edge_atp_hf", simple_class_path=f"{_MODELS}.EdgeAtpHf"),
    ]
