"""Compute and memory of a model under pruning: every method at every budget, dense beside.

examples:
  edge-atp flops llava-1.5-7b --keep 192,128,64
  edge-atp flops llava-1.5-7b --keep 64 --convention papers --text-tokens 512
  edge-atp flops models/warehouse_tiny/weights --keep 64       # a checkpoint folder (config.json)

MODEL is a known architecture or a folder with a LLaVA-style config.json. Convention "papers"
counts full attention and every position through the head, as publications do; "engine" counts
what a good engine runs: causal attention, the head on the last position. FLOPs are not latency.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from edge_atp.cli.arguments import add_json, parse_integers, parse_names
from edge_atp.cli.console import table_console
from edge_atp.errors import ConfigError
from edge_atp.flops import CONVENTIONS, MODELS, ModelSpec, Row, from_config, named, table

_CONFIG = "config.json"
_COLUMNS = (
    *("method", "kept", "mean in LLM", "ViT", "projector", "text", "selection", "prefill"),
    *("total", "of dense", "decode", "KV, MB"),
)
_NARROW_COLUMNS = ("method", "kept", "ViT", "prefill", "total", "of dense", "KV, MB")
_WIDE = 124  # characters that all columns take


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``edge-atp flops``."""
    parser.add_argument(
        "model", help=f"{', '.join(MODELS)}, or a folder of a checkpoint with {_CONFIG}"
    )
    parser.add_argument("--keep", default="", metavar="K,K", help="visual tokens kept")
    parser.add_argument("--methods", default="", metavar="A,B", help="default: all that fit")
    parser.add_argument(
        "--text-tokens", type=int, default=64, help="text of the prompt (default 64)"
    )
    parser.add_argument("--new-tokens", type=int, default=16, help="tokens generated (default 16)")
    parser.add_argument("--convention", choices=CONVENTIONS, default="engine")
    parser.add_argument("--text-tower", type=Path, help="folder of the CLIP text tower")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Compute and print the table."""
    if args.text_tokens < 0 or args.new_tokens < 0:
        raise ConfigError("--text-tokens and --new-tokens must be at least 0")
    model = _model(args.model, args.text_tower)
    rows = table(
        model,
        keeps=_budgets(args.keep, model),
        methods=parse_names(args.methods, "--methods") if args.methods else None,
        text_tokens=args.text_tokens,
        new_tokens=args.new_tokens,
        convention=args.convention,
    )
    if args.json:
        print(json.dumps({"model": model.name, "rows": [asdict(row) for row in rows]}))
    else:
        _print(model, rows, args)
    return 0


def _model(name: str, text_tower: Path | None) -> ModelSpec:
    """A known architecture, or the one of a checkpoint folder.

    Raises:
        ConfigError: neither; lists the known ones.
    """
    folder = Path(name)
    if not (folder / _CONFIG).is_file():
        if text_tower:
            raise ConfigError(f"--text-tower needs a checkpoint folder as MODEL, not {name}")
        return named(name)
    tower = text_tower or folder / "text_tower"
    config = _config(tower) if (tower / _CONFIG).is_file() or text_tower else None
    return from_config(folder.resolve().name, _config(folder), config)


def _config(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / _CONFIG}: cannot be read ({error})") from error
    return dict(content)


def _budgets(text: str, model: ModelSpec) -> list[int]:
    """Budgets as given, else a half, a quarter and an eighth of the model's tokens."""
    if not text:
        return [model.visual_tokens // part for part in (2, 4, 8)]
    return list(parse_integers(text, "--keep"))


def _print(model: ModelSpec, rows: list[Row], args: argparse.Namespace) -> None:
    scale, unit = (1.0, "TFLOPs") if rows[0].total >= 0.1 else (1e3, "GFLOPs")
    console = table_console()
    console.print(
        f"[bold]{model.name}[/bold]: {model.visual_tokens} visual tokens,"
        f" {args.text_tokens} text tokens, {args.new_tokens} generated,"
        f" convention {args.convention}; {unit} of one question"
    )
    columns = _COLUMNS if console.width >= _WIDE else _NARROW_COLUMNS
    shown = Table(box=SIMPLE_HEAD)
    for name in columns:
        shown.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for row in rows:
        cells = _cells(model, row, scale)
        shown.add_row(*(cells[name] for name in columns))
    console.print(shown)


def _cells(model: ModelSpec, row: Row, scale: float) -> dict[str, str]:
    """Every column of one line, FLOPs multiplied by ``scale``."""
    return {
        "method": "dense" if row.method == "none" else row.method,
        "kept": str(row.kept or model.visual_tokens),
        "mean in LLM": f"{row.mean_visual:.0f}",
        "ViT": _shown(scale * row.vision),
        "projector": _shown(scale * row.projector),
        "text": _shown(scale * row.text_tower),
        "selection": _shown(scale * row.selection),
        "prefill": _shown(scale * row.prefill),
        "total": _shown(scale * row.total),
        "of dense": f"{100 * row.relative:.1f} %",
        "decode": _shown(scale * row.decode),
        "KV, MB": f"{row.kv_cache_mb:.1f}",
    }


def _shown(value: float) -> str:
    """Three decimals; a dash for nothing at all, which is not the same as little."""
    return "-" if value == 0.0 else f"{value:.3f}"
