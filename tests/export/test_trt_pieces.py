"""A model in pieces as TensorRT engines, one per group and block, on stand-ins that compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_tensorrt import FakeTensorRT
from test_trt_session import device as device
from tiny_checkpoints import PROMPT

from edge_atp.pruning import evit, ivtp, sparsevlm
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.in_model import InModelRunner
from edge_atp.runtime.model_dir import ModelDirectory
from edge_atp.runtime.profiles import is_executed, profiles_for
from export import recipe
from export.settings import ExportSettings
from export.tensorrt.recipe import build_engines
from export.tensorrt.support import PARSERS, Finding, ParserVersion, lint

QUESTION = "where is the red box on the shelf?"


@pytest.mark.parametrize("dialect", ["prim17", "std24"])
def test_engines_cut_as_onnx_runtime_does(
    device: FakeTensorRT,
    checkpoint: Path,
    text_tower: Path,
    pixels: np.ndarray,
    dialect: str,
    tmp_path: Path,
) -> None:
    settings = ExportSettings(
        checkpoint,
        text_tower=str(text_tower),
        prompt=PROMPT,
        max_kv=96,
        dialect=dialect,
        block_layers=1,
        vision_groups=1,
        compare=False,
    )
    directory = recipe.export_model(settings, tmp_path / "model", progress=lambda step: None)
    parser = next(p for p in PARSERS if not {f.problem for f in _findings(directory, p)})
    assert parser.name  # some TensorRT reads every graph of the dialect
    directory = build_engines(
        directory,
        workspace_bytes=1 << 20,
        optimization_level=3,
        log=lambda line: None,
        trt=device,
        cuda=device.cuda,
    )
    roles = {engine.role for engine in directory.manifest.engines}
    assert {"decoder.2", "probe.0", "vision_group.1", "vision_tail", "vision_cls"} <= roles
    engines = [Engine.load(directory, backend) for backend in ("trt", "ort-cpu")]
    stage_two = ivtp.Method(group_size=1, encoder_layers=2, encoder_kept=9, llm_layers=2)
    for pruner in (stage_two, evit.Method(layers=(0,)), sparsevlm.Method((1,), (0.5,))):
        answers = []
        for engine in engines:
            runner = InModelRunner(engine)
            if isinstance(pruner, sparsevlm.Method):
                features = engine.encode_image(pixels).patch_features
                tokens = engine.project(features, np.arange(16))
                prompt = engine.embed_prompt(QUESTION, [tokens])
            else:
                prompt = runner.prompt(pruner, QUESTION, [runner.encode(pixels, pruner, 5)])
            cut = pruner if pruner.site == "in_llm" else None
            answer = engine.generate(prompt, max_new_tokens=4, cut=cut, num_kept=5)
            kept = {layer: rows.tolist() for layer, rows in engine.kept_by_layer.items()}
            answers.append((answer.token_ids, kept))
        assert answers[0] == answers[1]


def _findings(directory: ModelDirectory, parser: ParserVersion) -> list[Finding]:
    graphs = [g for g in directory.manifest.graphs if is_executed(g.role)]
    assert all(profiles_for(graph, directory.manifest) for graph in graphs)
    return [f for graph in graphs for f in lint(directory.path / graph.file, parser)]
