"""Show a model directory; every file's hash is checked on the way.

examples:
  edge-atp info                          # the shipped default model, as this machine runs it
  edge-atp info warehouse_tiny:fp32      # another of its exports
  edge-atp info path/to/model --json     # the manifest
  edge-atp info path/to/model --verify   # does this machine compute the same model?
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edge_atp.cli.arguments import DEFAULT_MODEL, MODEL_HELP, add_backend, add_json
from edge_atp.errors import BackendUnavailableError
from edge_atp.pipeline import runnable_methods
from edge_atp.runtime import golden, sessions
from edge_atp.runtime.cut_encoder import has_cut
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.find_model import find_model
from edge_atp.runtime.manifest import Manifest
from edge_atp.runtime.model_dir import ModelDirectory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``edge-atp info``."""
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL, help=MODEL_HELP)
    parser.add_argument(
        "--verify",
        action="store_true",
        help="re-run the golden answers on this machine; exit code 1 where they differ",
    )
    add_backend(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Check and print the model directory."""
    found = find_model(args.model, args.engine)
    directory = ModelDirectory.open(found.path)
    if args.json:
        print(json.dumps(asdict(directory.manifest), default=str, indent=2))
        return 0
    _print(directory, found.reason, _backend_of(directory.manifest, args.engine))
    return _verify(directory, args.engine, args.threads) if args.verify else 0


def _verify(directory: ModelDirectory, backend: str, num_threads: int) -> int:
    """Compare this machine's answers with those recorded at export."""
    engine = Engine.load(directory, backend, num_threads=num_threads)
    report = golden.verify(engine)
    engine.close()
    verdict = "[green]passed[/green]" if report.passed else "[red]failed[/red]"
    Console(highlight=False).print(
        f"golden answers on {engine.backend}: {verdict}, {report.cases} cases, kept patches"
        f" {report.kept_jaccard:.3f} (Jaccard, at least {report.min_kept_jaccard:g}), tokens"
        f" {report.token_agreement:.3f} (at least {golden.MIN_TOKEN_AGREEMENT:g})"
    )
    return 0 if report.passed else 1


def _backend_of(manifest: Manifest, backend: str) -> str:
    """What would run the model here, and why."""
    try:
        name, reason = sessions.choose_for(manifest, backend)
    except BackendUnavailableError as error:
        return f"nothing ({error})"
    return f"{name} ({reason})"


def _print(directory: ModelDirectory, reason: str, backend: str) -> None:
    console = Console(highlight=False)
    manifest = directory.manifest
    vision, llm, selection = manifest.vision, manifest.llm, manifest.selection
    grid = vision.patch_grid
    console.print(f"[bold]{manifest.model_id}[/bold]  {directory.path}")
    if reason:
        console.print(f"[dim]{escape(reason)}[/dim]", soft_wrap=True)
    console.print(f"[dim]this machine: {escape(backend)}[/dim]", soft_wrap=True)
    precision = manifest.precision
    console.print(
        f"precision: {precision.compute}, runs on"
        f" {', '.join(precision.backends) or 'every backend that reads its dialect'}\n"
        f"image {manifest.preprocess.size} px ({manifest.preprocess.resize}),"
        f" {vision.num_patches} visual tokens ({grid.rows} x {grid.cols})\n"
        f"language model: {llm.layers} layers, hidden {llm.hidden}, {llm.heads} heads"
        f" ({llm.kv_heads} kv), vocabulary {llm.vocab}, up to {llm.max_kv} tokens\n"
        f"default pruning: {selection.method}, keep_ratio {selection.keep_ratio:g},"
        f" alpha {selection.alpha:g}, relevance {selection.relevance_source}\n"
        f"methods: {', '.join(runnable_methods(manifest))}{_cut_methods(manifest)}"
    )
    table = Table("file", "KiB", "sha256", title="files (hashes match)", title_justify="left")
    for entry in manifest.files:
        table.add_row(entry.path, f"{entry.bytes / 1024:.0f}", entry.sha256[:16])
    console.print(table)
    console.print(_parity_table(manifest.parity))


def _cut_methods(manifest: Manifest) -> str:
    """What the encoder that drops patches on its way adds to the methods, if there is one."""
    if not has_cut(manifest):
        return ""
    vision = manifest.vision
    cuts = zip(vision.cut_layers, vision.cut_kept, strict=True)
    left = ", ".join(f"{kept} patches behind vision layer {layer}" for layer, kept in cuts)
    return f"; cut+NAME where the encoder leaves {left}"


def _parity_table(parity: dict[str, Any]) -> Table:
    """The gates the export passed, and the circumstances they were measured under."""
    facts = ", ".join(f"{name} {value}" for name, value in parity.items() if name != "gates")
    table = Table(
        "gate", "measured", "limit", title=f"parity at export ({facts})", title_justify="left"
    )
    for name, gate in parity.get("gates", {}).items():
        # Distances that a quantised export only records have no limit.
        limit = "-" if gate["limit"] is None else f"{gate['limit']:.3g}"
        table.add_row(name, f"{gate['value']:.3g}", limit)
    return table
