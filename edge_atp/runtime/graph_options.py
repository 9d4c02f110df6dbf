"""What a backend is told about one graph of a model directory."""

from __future__ import annotations

from dataclasses import replace

from edge_atp.runtime.manifest import GraphSpec
from edge_atp.runtime.model_dir import ModelDirectory
from edge_atp.runtime.profiles import READABLE_DIALECTS, is_executed, profiles_for
from edge_atp.runtime.sessions.base import SessionOptions


def graph_options(
    options: SessionOptions, directory: ModelDirectory, graph: GraphSpec
) -> SessionOptions:
    """``options`` with what the manifest says about ``graph``."""
    manifest, role = directory.manifest, graph.role
    engine = next((e for e in manifest.engines if e.role == role), None)
    buildable = is_executed(role) and graph.dialect in READABLE_DIALECTS
    return replace(
        options,
        graph_sha256=directory.sha256(role),
        engine=engine,
        engine_path=directory.file(f"{role}_engine") if engine else None,
        role=role,
        dialect=graph.dialect,
        profiles=tuple(profiles_for(graph, manifest)) if buildable else (),
        compute=manifest.precision.compute,
    )
