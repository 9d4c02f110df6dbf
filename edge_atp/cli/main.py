"""Picks the command, runs it, and turns expected errors into one line on stderr.

A new command is a line in ``COMMANDS`` and a module of that name with ``add_arguments`` and
``run``.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from edge_atp import __version__
from edge_atp.errors import EdgeAtpError

COMMANDS = {
    "ask": "answer a question about an image",
    "compare": "show what pruning methods keep of an image",
    "evaluate": "measure what pruning costs on a labelled data set",
    "score": "run and score VQAv2, GQA or COCO captions",
    "bench": "measure what pruning saves here; calibrate or project a device",
    "flops": "count compute and memory of a model under pruning",
    "replay": "ask about every frame of a recorded bag, without ROS",
    "diff": "compare two replay results: answers, masks, latencies",
    "view": "show answers, kept patches and latencies in the rerun viewer",
    "info": "show a model: which backend runs, graphs, defaults, parity",
}

_FIRST_STEPS = """first steps, with the shipped model:
  edge-atp ask docs/cell.jpg "where is the red box?"      # an answer
  edge-atp compare docs/cell.jpg "where is the red box?"  # what methods keep
  edge-atp bench warehouse_tiny                           # what pruning saves
  edge-atp COMMAND --help                                 # examples, and more

exit status: 0 done; 1 a check that was asked for failed (replay --check, diff,
info --verify); 2 an error that was explained.
In ROS 2: ros2 launch edge_atp warehouse.launch.py
"""
_EXIT_ERROR = 2
_EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``edge-atp``; returns the exit status (0 done, 2 an error that was explained)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in arguments if word in COMMANDS), None)
    parser = argparse.ArgumentParser(
        prog="edge-atp",
        description="Ask a vision-language model about camera frames, with only the visual tokens"
        "\nthat matter.",
        epilog=_FIRST_STEPS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"edge-atp {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        module = _load(name) if name == chosen else None
        sub = commands.add_parser(
            name,
            help=summary,
            description=(module.__doc__ if module else summary),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if module:
            module.add_arguments(sub)
    args = parser.parse_args(arguments)
    try:
        status: int = _load(args.command).run(args)
    except EdgeAtpError as error:
        print(f"edge-atp {args.command}: {error}", file=sys.stderr)
        return _EXIT_ERROR
    except OSError as error:
        if error.filename is None:  # no file of the user's: a fault, with its traceback
            raise
        print(
            f"edge-atp {args.command}: cannot use {error.filename}: {error.strerror}",
            file=sys.stderr,
        )
        return _EXIT_ERROR
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    return status


def _load(command: str) -> ModuleType:
    return importlib.import_module(f"edge_atp.cli.{command}")
