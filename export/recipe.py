"""The export, stage by stage: read, emit graphs, describe, compare, publish."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

import edge_atp
from edge_atp.runtime import golden
from edge_atp.runtime import manifest as m
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.model_dir import ModelDirectory, file_sha256
from export.accuracy import accuracy_drop, read_labels
from export.architecture import Llava, read_llava
from export.calibration import calibrate
from export.describe import describe, graph_spec
from export.dialects import load_dialect
from export.gates import Measurements
from export.graph import GraphBuilder
from export.journal import Journal, fingerprint
from export.memory import fits
from export.parity import require_memory, run_gates
from export.parity_inputs import QUESTIONS
from export.plan import Sources, plan_graphs
from export.precision import get_precision
from export.settings import ExportSettings
from export.staging import staged_directory
from export.text_tower import load_text_tower

# Weights of a graph go to an external file from this size on: one protobuf holds 2 GB at most.
_EXTERNAL_BYTES = 512 << 20
_ANSWER_TOKENS = 256
# Of a short question, the prompt around it and a short answer.
_LEAST_TEXT_TOKENS = 32
Progress = Callable[[str], None]


def export_model(
    settings: ExportSettings, out: Path, *, overwrite: bool = False, progress: Progress = print
) -> ModelDirectory:
    """Export a checkpoint and check it against the original.

    Raises:
        EdgeAtpError: unusable checkpoint, or a parity gate failed; ``out`` is then unchanged.
    """
    sources = read_sources(settings)
    if settings.compare:
        # Known beforehand, and no reason to throw away an hour of written graphs.
        require_memory(sources)
    if _is_measured(settings):
        read_labels(Path(settings.accuracy_set))
    mark = _fingerprint(sources)
    with staged_directory(out, overwrite=overwrite, fingerprint=mark) as journal:
        staged = journal.folder
        write_directory(sources, journal, progress)
        if settings.compare:
            progress("comparing with the original model")
            directory = ModelDirectory.open(staged, unfinished=True)
            parity = run_gates(sources, directory, progress)
        else:
            parity = {"compared": False, "gates": {}}
        parity["gates"].update(_accuracy_gates(sources, staged, progress))
        _complete(sources, staged, parity, progress)
    return ModelDirectory.open(out)


# Settings that say how to check an export, not what it holds.
_CHECK_SETTINGS = frozenset({"compare", "accuracy_set", "parity_new_tokens"})


def _fingerprint(sources: Sources) -> str:
    """Of everything that decides what the files of this export hold."""
    settings, tower = vars(sources.settings), sources.tower
    return fingerprint(
        {
            "settings": {k: v for k, v in settings.items() if k not in _CHECK_SETTINGS},
            "config": sources.model.vision.__dict__ | sources.model.llm.__dict__,
            "tokenizer": file_sha256(sources.tokenizer),
            "checkpoint": sources.model.tensors.sha256(),
            "text_tower": tower.tensors.sha256() if tower else "",
            "packages": [onnx.__version__, np.__version__],
        }
    )


def _is_measured(settings: ExportSettings) -> bool:
    """Whether task accuracy is compared with that of a float32 export."""
    return bool(settings.accuracy_set) and settings.precision != "fp32"


def _accuracy_gates(sources: Sources, staged: Path, progress: Progress) -> dict[str, Any]:
    """Task accuracy of a quantised directory against float32, where a data set was given."""
    settings = sources.settings
    if not _is_measured(settings):
        return {}
    with tempfile.TemporaryDirectory(prefix="edge_atp_fp32_") as folder:
        plain = replace(sources, settings=replace(settings, precision="fp32"))
        journal = Journal(Path(folder), "")
        write_directory(plain, journal, progress)
        journal.close()
        measured = accuracy_drop(
            staged, Path(folder), Path(settings.accuracy_set), settings.keep_ratio, progress
        )
    gates = Measurements(get_precision(settings.precision, settings.dialect).limits)
    for name, value in measured.items():
        gates.add(name, value)
    gates.require()
    return gates.as_json()


def _complete(sources: Sources, staged: Path, parity: dict[str, Any], progress: Progress) -> None:
    """Add the golden answers and the parity numbers to a directory that passed."""
    manifest = m.read_manifest(staged / m.FILE_NAME)
    files = manifest.files
    # 16-bit weights are widened when ONNX Runtime loads them; quantised ones stay small.
    widened = sources.settings.precision in ("fp32", "fp16")
    needed = sources.model.float32_bytes() if widened else 0
    if fits(needed):
        progress("recording golden answers")
        engine = Engine.load(ModelDirectory.open(staged, unfinished=True), "ort-cpu")
        golden.write_golden(staged / "golden.json", golden.record(engine, QUESTIONS))
        engine.close()
        files = (*files, _file_spec(staged, golden.ROLE, "golden.json"))
    else:
        progress(
            f"no golden answers: running the model takes about {needed / 1e9:.0f} GB of memory;"
            " `edge-atp info --verify` will have nothing to compare with"
        )
    m.write_manifest(staged / m.FILE_NAME, replace(manifest, files=files, parity=parity))


def _file_spec(folder: Path, role: str, name: str) -> m.FileSpec:
    path = folder / name
    return m.FileSpec(role, name, file_sha256(path), path.stat().st_size)


def read_sources(settings: ExportSettings) -> Sources:
    """Open the checkpoint and text tower and check that they fit together."""
    model = read_llava(settings.checkpoint)
    layer = settings.vision_feature_layer
    if layer not in (None, model.vision.feature_layer):
        raise edge_atp.errors.ConfigError(
            f"vision_feature_layer is {layer} in the model file and {model.vision.feature_layer} in"
            f" {settings.checkpoint}/config.json; the projector was trained on one of them: correct"
            " the model file"
        )
    tower = load_text_tower(settings.text_tower) if settings.text_tower else None
    tokenizer = settings.checkpoint / "tokenizer.json"
    if not tokenizer.is_file():
        raise edge_atp.errors.ArtifactError(
            f"{tokenizer} is missing; save the checkpoint's fast tokenizer there"
        )
    if tower and tower.visual_projection.shape[1] != model.vision.hidden:
        raise edge_atp.errors.ArtifactError(
            f"text tower {tower.source}: its visual projection takes"
            f" {tower.visual_projection.shape[1]} features, the vision encoder has"
            f" {model.vision.hidden}; it belongs to another vision encoder"
        )
    return Sources(settings, model, tower, tokenizer, _max_kv(settings, model))


def _max_kv(settings: ExportSettings, model: Llava) -> int:
    patches = model.vision.grid**2
    if not settings.max_kv:
        wanted = patches + settings.max_text_tokens + _ANSWER_TOKENS
        return min(model.llm.max_positions, wanted)
    if settings.max_kv < patches + _LEAST_TEXT_TOKENS:
        raise edge_atp.errors.ConfigError(
            f"max_kv is {settings.max_kv}; an image has {patches} visual tokens here, and a"
            f" question with its answer needs {_LEAST_TEXT_TOKENS} more: give"
            f" {patches + settings.max_text_tokens + _ANSWER_TOKENS} or so (--max-kv)"
        )
    return settings.max_kv


def write_directory(sources: Sources, journal: Journal, progress: Progress) -> None:
    """Write graphs, tables, tokenizers and the manifest (still without parity numbers).

    Files that the journal knows as finished are kept.
    """
    folder = journal.folder
    graphs: list[m.GraphSpec] = []
    files: list[m.FileSpec] = []
    precision = get_precision(sources.settings.precision, sources.settings.dialect)
    opset = load_dialect(sources.settings.dialect).opset
    plan = plan_graphs(sources)
    manifest = describe(sources)
    ranges = calibrate(sources, manifest, progress) if precision.calibrated else {}
    for number, item in enumerate(plan, start=1):
        role = item.role
        data = f"{role}.weights" if item.weight_bytes > _EXTERNAL_BYTES else None
        names = [(role, f"{role}.onnx")] + ([(f"{role}_weights", data)] if data else [])
        if journal.finished(name for _, name in names):
            progress(f"[{number}/{len(plan)}] {role} was finished before")
        else:
            progress(f"[{number}/{len(plan)}] emitting {role}")
            form = precision.form(item.kind, ranges)
            graph = GraphBuilder(role, folder / data if data else None, opset, form)
            item.emit(graph)
            graph.save(folder / f"{role}.onnx")
        files += [journal.record(*name) for name in names]
        graphs.append(graph_spec(folder, role, sources.settings.dialect))
    progress("writing the embedding table and tokenizers")
    if not journal.finished(["embed_tokens.npy"]):
        np.save(folder / "embed_tokens.npy", _embedding_table(sources.model), allow_pickle=False)
    files.append(journal.record("embed_tokens", "embed_tokens.npy"))
    tokenizers = [("tokenizer", sources.tokenizer)]
    if sources.tower:
        tokenizers.append(("text_tokenizer", sources.tower.tokenizer))
    for role, source in tokenizers:
        shutil.copyfile(source, folder / f"{role}.json")
        files.append(journal.record(role, f"{role}.json"))
    complete = replace(manifest, graphs=tuple(graphs), files=tuple(files))
    m.write_manifest(folder / m.FILE_NAME, complete)


def _embedding_table(model: Llava) -> NDArray[Any]:
    table = model.tensors.get("llm.embed_tokens.weight")
    # NumPy files know no bfloat16; float32 holds it without loss.
    return table if table.dtype in (np.float16, np.float32) else table.astype(np.float32)
