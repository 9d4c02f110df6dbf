"""Compute and memory of a model under pruning: every method at every budget, dense beside.

examples:
  edge-atp flops llava-1.5-7b --keep 192,128,64
  edge-atp flops llava-1.5-7b --keep 64 --convention papers --text-tokens 512
  edge-atp flops models/warehouse_tiny/weights --keep 64       # a checkpoint folder (config.json)
  edge-atp flops llava-1.5-7b --visual-tokens 256 --keep 150 --methods atp --convention papers \\
    --text-tokens 10,64,128              # ATP's table 1, as a function of the text it does not name

MODEL is a known architecture or a folder with a LLaVA-style config.json. Convention "papers"
counts full attention and every position through the head, as publications do; "engine" counts
what a good engine runs: causal attention, the head on the last position. FLOPs are not latency.
A share of the dense model's FLOPs depends on the length of the text: several --text-tokens print
it for each of them.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from edge_atp.cli.arguments import add_json, parse_integers, parse_names
from edge_atp.cli.console import table_console
from edge_atp.errors import ConfigError
from edge_atp.flops import (
    CONVENTIONS,
    MODELS,
    ModelSpec,
    Row,
    from_config,
    named,
    table,
    with_visual_tokens,
)

_CONFIG = "config.json"
# Folders named for what they hold: the model's name is the one of the folder around them.
_NAMELESS = ("weights", "checkpoint", "checkpoints", "model", "hf")
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
        "--text-tokens",
        default="64",
        metavar="M,M",
        help="text of the prompt (default %(default)s); several: shares of dense, by text length",
    )
    parser.add_argument(
        "--visual-tokens",
        type=int,
        metavar="N",
        help="tokens of the image before pruning, where it is not the model's usual one",
    )
    parser.add_argument("--new-tokens", type=int, default=16, help="tokens generated (default 16)")
    parser.add_argument("--convention", choices=CONVENTIONS, default="engine")
    parser.add_argument("--text-tower", type=Path, help="folder of the CLIP text tower")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Compute and print the table."""
    lengths = parse_integers(args.text_tokens, "--text-tokens")
    if min(lengths) < 0 or args.new_tokens < 0:
        raise ConfigError(
            f"--text-tokens is {args.text_tokens} and --new-tokens {args.new_tokens}; they must be"
            " at least 0"
        )
    model = _model(args.model, args.text_tower)
    if args.visual_tokens is not None:
        model = with_visual_tokens(model, args.visual_tokens)
    keeps = _budgets(args.keep, model)
    methods = parse_names(args.methods, "--methods") if args.methods else None
    tables = [
        table(model, keeps, methods, length, args.new_tokens, args.convention) for length in lengths
    ]
    if args.json:
        rows = [asdict(row) for rows in tables for row in rows]
        print(json.dumps({"model": model.name, "rows": rows}))
    elif len(tables) == 1:
        _print(model, tables[0], args)
    else:
        _print_shares(model, tables, args)
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
    return from_config(_name(folder.resolve()), _config(folder), config)


def _name(folder: Path) -> str:
    """The model's name: the repository's in a download cache, else the innermost that says one.

    The cache of Hugging Face holds ``models--OWNER--NAME/snapshots/REVISION``.
    """
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.split("--")[-1]
    named_folders = (part.name for part in (folder, *folder.parents) if part.name not in _NAMELESS)
    return next(named_folders) or folder.name


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
        f" {rows[0].text_tokens} text tokens, {args.new_tokens} generated,"
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


def _print_shares(model: ModelSpec, tables: list[list[Row]], args: argparse.Namespace) -> None:
    """What is left of the dense model's FLOPs at each text length, % (one table a length given)."""
    console = table_console()
    console.print(
        f"[bold]{model.name}[/bold]: {model.visual_tokens} visual tokens, convention"
        f" {args.convention}; % of the dense model, by tokens of text"
    )
    for title, share in (
        ("LLM prefill", attrgetter("relative_prefill")),
        (
            "everything until the first token",
            attrgetter("relative"),
        ),
    ):
        shown = Table(box=SIMPLE_HEAD, title=title, title_justify="left")
        shown.add_column("method")
        for name in ("kept", *(f"{rows[0].text_tokens}" for rows in tables)):
            shown.add_column(name, justify="right", no_wrap=True)
        for lines in zip(*tables, strict=True):
            if lines[0].method != "none":
                cells = (f"{100 * share(row):.1f}" for row in lines)
                shown.add_row(lines[0].method, str(lines[0].kept), *cells)
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
