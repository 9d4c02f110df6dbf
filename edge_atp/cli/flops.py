"""Compute and memory of a model under pruning: every method at every budget, dense beside.

examples:
  edge-atp flops                                           # the shipped default model
  edge-atp flops llava-1.5-7b --keep 192,128,64 --methods atp,fastv
  edge-atp flops llava-1.5-7b --keep 64 --convention papers --text-tokens 512
  edge-atp flops models/warehouse_tiny/weights --keep 64   # a checkpoint folder (config.json)
  edge-atp flops llava-1.5-7b --visual-tokens 256 --keep 150 --methods atp --convention papers \\
    --text-tokens 10,64,128          # ATP's table 1, as a function of the text it does not name

How to read it. A share of the dense model's FLOPs depends on how much text the prompt has beside
its image, and means nothing without that length: it stands in the column's head. Several
--text-tokens print the shares for each, of the LLM's prefill and of everything until the first
token; published shares are mostly of the prefill. FLOPs are not latency: `edge-atp bench` measures
that.

--convention says what is counted. "papers": full attention and every position through the head, as
publications do. "engine": what a good engine runs, causal attention and the head on the last
position. cut+NAME, which needs an export with --vision-cut, is counted by `edge-atp bench`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from edge_atp import pruning
from edge_atp.bench.dimensions import model_spec
from edge_atp.cli.arguments import DEFAULT_MODEL, add_json, parse_integers, parse_names
from edge_atp.cli.console import table_console
from edge_atp.cli.flops_tables import print_details, print_shares
from edge_atp.errors import ArtifactError, ConfigError
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
from edge_atp.runtime.find_model import find_model, shipped_models
from edge_atp.runtime.manifest import FILE_NAME, read_manifest

_CONFIG = "config.json"
# Folders named for what they hold: the model's name is the one of the folder around them.
_NAMELESS = ("weights", "checkpoint", "checkpoints", "model", "hf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``edge-atp flops``."""
    parser.add_argument(
        "model",
        nargs="?",
        default=DEFAULT_MODEL,
        help=f"{', '.join(MODELS)}; a model directory or a shipped model; models/NAME.yaml; or a"
        f" folder of a LLaVA-style checkpoint with {_CONFIG} (default %(default)s)",
    )
    parser.add_argument(
        "--keep",
        default="",
        metavar="K,K",
        help="visual tokens kept (default: a half, a quarter and an eighth)",
    )
    parser.add_argument(
        "--methods",
        default="",
        metavar="A,B",
        help=f"pruning methods: {', '.join(n for n in pruning.available() if n != 'none')};"
        " default: all that this model can run",
    )
    _add_counted(parser)
    add_json(parser)


def _add_counted(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument(
        "--new-tokens",
        type=int,
        default=16,
        metavar="N",
        help="tokens generated, for decode and KV cache (default %(default)s)",
    )
    parser.add_argument(
        "--convention",
        choices=CONVENTIONS,
        default="engine",
        help="what is counted, see above (default %(default)s)",
    )
    parser.add_argument(
        "--text-tower",
        type=Path,
        metavar="DIR",
        help="folder of the CLIP text tower of a checkpoint (default: its text_tower)",
    )


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
        return 0
    console = table_console()
    if len(tables) == 1:
        about = f"{args.new_tokens} generated, convention {args.convention}"
        print_details(console, model, tables[0], about)
    else:
        print_shares(console, model, tables, args.convention)
    if not methods and (left_out := _left_out(tables[0])):
        console.print(
            f"left out: {', '.join(left_out)}; {model.name} has not the layers at which they cut"
            " by default, or not the text tower that they read",
            style="dim",
        )
    return 0


def _left_out(rows: list[Row]) -> list[str]:
    """Methods that do not run on the model with their default options."""
    return sorted(set(pruning.available()) - {row.method for row in rows})


def _model(name: str, text_tower: Path | None) -> ModelSpec:
    """Dimensions of what the user named.

    Raises:
        ConfigError: nothing of that name; lists the known ones.
    """
    path = Path(name)
    if (path / _CONFIG).is_file():
        return _of_checkpoint(path, text_tower)
    if text_tower:
        raise ConfigError(f"--text-tower needs a checkpoint folder as MODEL, not {name}")
    if name in MODELS:
        return named(name)
    return _of_card(path) if path.suffix in (".yaml", ".yml") else _of_directory(name)


def _of_checkpoint(folder: Path, text_tower: Path | None = None) -> ModelSpec:
    tower = text_tower or folder / "text_tower"
    config = _config(tower) if (tower / _CONFIG).is_file() or text_tower else None
    return from_config(_name(folder.resolve()), _config(folder), config)


def _of_card(file: Path) -> ModelSpec:
    """The model that a ``models/NAME.yaml`` is about.

    Raises:
        ConfigError: the file cannot be read or a field is wrong, or the dimensions of its model are
            not known here.
    """
    card = _read_card(file)
    name = _text(file, card, "name", file.stem)
    if name in MODELS:
        return named(name)
    if card.get("directories"):
        return _of_directory(name)
    fields = card.get("export") or card
    if not isinstance(fields, Mapping):
        raise ConfigError(
            f"{file}: export is {fields!r}; it must be a mapping, with the checkpoint's folder"
        )
    checkpoint = file.parent / _text(file, fields, "checkpoint")
    if (checkpoint / _CONFIG).is_file():
        return _of_checkpoint(checkpoint)
    raise ConfigError(
        f"{file}: the dimensions of {name} are not known and no checkpoint lies at {checkpoint};"
        f" give the folder of its checkpoint, or one of {', '.join(MODELS)}"
    )


def _read_card(file: Path) -> Mapping[str, Any]:
    try:
        card = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: bytes, dates
        raise ConfigError(f"{file}: cannot be read as YAML in UTF-8 ({error})") from error
    if not isinstance(card, Mapping):
        raise ConfigError(f"{file}: expected a mapping with the model's name and checkpoint")
    return card


def _text(file: Path, fields: Mapping[str, Any], field: str, default: str | None = None) -> str:
    """A field of a model file that must hold text, or ``default`` where it is absent."""
    value = fields.get(field, default)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{file}: {field} is {value!r}; it must be a text that is not empty")
    return value


def _of_directory(name: str) -> ModelSpec:
    """The model of a model directory, or of a shipped model, as its engine runs it."""
    try:
        found = find_model(name)
    except ArtifactError as error:
        raise ConfigError(
            f"unknown model {name!r}; choose one of {', '.join((*MODELS, *shipped_models()))}, or"
            f" give a model directory (with {FILE_NAME}), a checkpoint folder (with {_CONFIG}) or"
            " models/NAME.yaml"
        ) from error
    return model_spec(read_manifest(found.path / FILE_NAME))[0]


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
    if not isinstance(content, dict):
        raise ConfigError(f"{folder / _CONFIG}: expected an object, a checkpoint's configuration")
    return content


def _budgets(text: str, model: ModelSpec) -> list[int]:
    """Budgets as given, else a half, a quarter and an eighth of the model's tokens."""
    if not text:
        return [model.visual_tokens // part for part in (2, 4, 8)]
    return list(parse_integers(text, "--keep"))
