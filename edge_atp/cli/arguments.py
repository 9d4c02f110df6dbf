"""Options that several commands share, declared once: one name, one default, one help text."""

from __future__ import annotations

import argparse

from edge_atp import pruning
from edge_atp.errors import ConfigError
from edge_atp.runtime.in_model import in_model_methods

DEFAULT_MODEL = "warehouse_tiny"
MODEL_HELP = "model directory, or a shipped model: NAME, or NAME:fp32, NAME:int8"

# A parser, or one of its groups.
Parser = argparse._ActionsContainer


def add_model(parser: Parser) -> None:
    """``--model`` and what runs it."""
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help=f"{MODEL_HELP} (default %(default)s)"
    )
    add_backend(parser)


def add_backend(parser: Parser) -> None:
    """``--engine`` and ``--threads``."""
    parser.add_argument(
        "--engine",
        default="auto",
        metavar="NAME",
        help="backend: auto (the best that runs here, `edge-atp info` says which and why), ort,"
        " ort-cpu, ort-cuda, ort-cuda-graph, ort-trt or trt (default %(default)s)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        metavar="N",
        help="CPU threads of the backend (default 0: as many as there are physical cores)",
    )


def add_method(parser: Parser) -> None:
    """``--method``."""
    parser.add_argument(
        "--method",
        default="",
        metavar="NAME",
        help=f"pruning method: {', '.join(pruning.available('post_encoder'))}; on a directory"
        f" exported in pieces also {', '.join(in_model_methods())}; on one exported with"
        " --vision-cut also cut+NAME, whose vision encoder drops patches on its way; none keeps"
        " all (default: the model's, see `edge-atp info`)",
    )


def add_longest(parser: Parser, default: int) -> None:
    """``--max-new-tokens``."""
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=default,
        metavar="N",
        help="longest answer, tokens (default %(default)s)",
    )


def add_seed(parser: Parser, of: str = "random methods") -> None:
    """``--seed``."""
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help=f"seed of {of} (default 0)"
    )


def add_json(parser: Parser) -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def parse_names(text: str, option: str) -> tuple[str, ...]:
    """Names from "a,b"; spaces around them do not count.

    Raises:
        ConfigError: one is empty; names the option.
    """
    names = tuple(name.strip() for name in text.split(","))
    if "" in names:
        raise ConfigError(f"{option} is {text!r}; give names separated by commas")
    return names


def parse_integers(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers from "8,4".

    Raises:
        ConfigError: names the option.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"{option} is {text!r}; give whole numbers separated by commas"
        ) from error
