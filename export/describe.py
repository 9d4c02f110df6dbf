"""The manifest of an export, as far as it is known before anything has run: what the model is."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import onnx

import edge_atp
from edge_atp.pruning.schedule import Schedule
from edge_atp.runtime import manifest as m
from export.architecture import Llava
from export.checkpoint import TensorStore
from export.dialects import load_dialect
from export.plan import Sources
from export.precision import get_precision
from export.prompt import image_token, read_preprocess, template_from_chat
from export.settings import ExportSettings
from export.text_tower import TextTower
from export.vision_cut import read_schedule


def describe(sources: Sources) -> m.Manifest:
    """What is known before the first file is written; graphs and files are still empty."""
    settings, model, tower = sources.settings, sources.model, sources.tower
    token = image_token(sources.tokenizer, model.image_token_id)
    size = model.vision.image_size
    return m.Manifest(
        format_version=m.FORMAT_VERSION,
        model_id=_model_id(settings),
        source=_source(sources),
        exporter=_exporter(settings),
        graphs=(),
        files=(),
        preprocess=read_preprocess(settings.checkpoint, size, settings.resize),
        vision=_vision(sources),
        selection=_selection(sources),
        llm=_llm(sources),
        prompt=m.PromptSpec(
            settings.prompt or template_from_chat(settings.checkpoint, token),
            token,
            model.image_token_id,
            settings.max_text_tokens,
        ),
        precision=m.PrecisionSpec(
            settings.precision,
            _weight_storage(model),
            _quantisation(settings),
            get_precision(settings.precision, settings.dialect).backends,
        ),
        text_tower=_text_tower_spec(tower) if tower else None,
    )


def graph_spec(folder: Path, role: str, dialect: str) -> m.GraphSpec:
    """Inputs and outputs of a written graph."""
    graph = onnx.load(str(folder / f"{role}.onnx"), load_external_data=False).graph
    return m.GraphSpec(
        role,
        f"{role}.onnx",
        dialect,
        tuple(_tensor_spec(v) for v in graph.input),
        tuple(_tensor_spec(v) for v in graph.output),
    )


def _tensor_spec(value: Any) -> m.TensorSpec:
    tensor = value.type.tensor_type
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    shape = tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
    return m.TensorSpec(value.name, dtype, shape)


def _model_id(settings: ExportSettings) -> str:
    return settings.model_id or settings.checkpoint.resolve().name


def _source(sources: Sources) -> m.SourceSpec:
    settings, model, tower = sources.settings, sources.model, sources.tower
    return m.SourceSpec(
        model=_model_id(settings),
        architecture=f"{model.architecture}/{model.llm.model_type}",
        sha256=model.tensors.sha256(),
        revision=settings.revision,
        text_tower=tower.source if tower else "",
    )


def _vision(sources: Sources) -> m.VisionSpec:
    settings, vision, tower = sources.settings, sources.model.vision, sources.tower
    cuts = read_schedule(settings.vision_cut, vision) if settings.vision_cut else Schedule(())
    return m.VisionSpec(
        num_patches=vision.grid**2,
        patch_grid=m.GridSpec(vision.grid, vision.grid),
        image_size=vision.image_size,
        feature_layer=vision.feature_layer,
        feature_dim=vision.hidden,
        embed_layer=settings.embed_layer,
        embed_dim=tower.embed_dim if tower else 0,
        layers=vision.layers,
        heads=vision.heads,
        group_layers=settings.vision_groups,
        intermediate=_mlp_width(sources.model.tensors, "vision"),
        cut_layers=cuts.layers,
        cut_kept=cuts.counts,
    )


def _selection(sources: Sources) -> m.SelectionSpec:
    settings = sources.settings
    return m.SelectionSpec(
        settings.method if sources.tower or settings.method != "atp" else "cls_topk",
        settings.alpha,
        settings.relevance_source,
        settings.keep_ratio,
        keep_max=sources.model.vision.grid**2,
    )


def _llm(sources: Sources) -> m.LlmSpec:
    llm = sources.model.llm
    return m.LlmSpec(
        layers=llm.layers,
        heads=llm.heads,
        kv_heads=llm.kv_heads,
        head_dim=llm.head_dim,
        hidden=llm.hidden,
        vocab=llm.vocab,
        rope_theta=llm.rope_theta,
        max_kv=sources.max_kv,
        eos_token_ids=llm.eos_token_ids,
        bos_token_id=llm.bos_token_id,
        intermediate=llm.intermediate,
        sliding_window=llm.sliding_window,
        block_layers=sources.settings.block_layers,
    )


def _text_tower_spec(tower: TextTower) -> m.TextTowerSpec:
    return m.TextTowerSpec(
        tower.context_length,
        tower.bos_token_id,
        tower.eos_token_id,
        tower.embed_dim,
        layers=tower.layers,
        hidden=tower.hidden,
        heads=tower.heads,
        intermediate=_mlp_width(tower.tensors, "text"),
    )


def _mlp_width(tensors: TensorStore, part: str) -> int:
    return tensors.shape(f"{part}.encoder.layers.0.mlp.fc1.weight")[0]


def _exporter(settings: ExportSettings) -> m.ExporterSpec:
    names = ("torch", "transformers", "onnxruntime", "numpy")
    return m.ExporterSpec(
        edge_atp=edge_atp.__version__,
        onnx=onnx.__version__,
        opset=load_dialect(settings.dialect).opset,
        packages={name: importlib.metadata.version(name) for name in names},
    )


def _quantisation(settings: ExportSettings) -> dict[str, Any]:
    precision = get_precision(settings.precision, settings.dialect)
    stated = dict(precision.stated)
    if precision.calibrated:
        name = Path(settings.calibration_set).name
        stated["calibration"] = f"labelled set {name}" if name else "synthetic pictures"
    return stated


def _weight_storage(model: Llava) -> str:
    short = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
    return short[model.tensors.dtype("llm.embed_tokens.weight")]
