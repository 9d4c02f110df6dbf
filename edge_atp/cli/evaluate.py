"""Measure what pruning costs on a labelled data set: every method at every budget, dense beside.

examples:
  edge-atp evaluate DATASET --out results
  edge-atp evaluate DATASET --methods atp,cls_topk,random --keep 128,64,32 --out results
  edge-atp evaluate DATASET --robustness --processes 4 --out results   # and disturbed images
  edge-atp evaluate DATASET --out results --resume                     # go on after a stop
  edge-atp evaluate VALIDATION --sweep-defaults --out sweep            # alpha, relevance, ratio

writes into --out: summary.json (every number, 95 % intervals), records.jsonl (every answer), and
the plots. The format of DATASET is described in edge_atp/evaluation/dataset.py; scenes for the
shipped model are drawn in a checkout by
  python -m models.warehouse_tiny.export_eval --split test --scenes 100 --out DATASET
"""

from __future__ import annotations

import argparse
from pathlib import Path

from edge_atp import pruning
from edge_atp.cli.arguments import (
    Parser,
    add_longest,
    add_model,
    add_seed,
    parse_integers,
    parse_names,
)
from edge_atp.cli.console import table_console
from edge_atp.config import PipelineConfig
from edge_atp.errors import ConfigError
from edge_atp.evaluation.arms import BASELINES

_DEFAULT_METHODS = "atp,cls_topk,random,spatial"
_DEFAULT_KEEP = "256,192,128,96,64,48,32,16"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``edge-atp evaluate``."""
    parser.add_argument("dataset", type=Path, help="folder of a labelled data set")
    add_model(parser)
    parser.add_argument(
        "--methods",
        default=_DEFAULT_METHODS,
        metavar="A,B",
        help="pruning methods, or `all` that the model can run; random and spatial are always"
        f" added; default: %(default)s; known: {', '.join(pruning.available())}",
    )
    parser.add_argument(
        "--keep",
        default=_DEFAULT_KEEP,
        metavar="K,K",
        help="visual tokens kept; default: %(default)s (those above the model's N are left out)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for results")
    parser.add_argument("--limit", type=int, metavar="N", help="use the first N images")
    parser.add_argument(
        "--long-limit",
        type=int,
        default=200,
        metavar="N",
        help="ask for long answers (captions) about the first N images only (default 200)",
    )
    parser.add_argument(
        "--choices",
        action="store_true",
        help="score short questions over a closed answer set: the question's own, or all answers"
        " of its family; the calibration error is then that of the choice's probability",
    )
    add_seed(parser, "random methods, noise and bootstrap")
    add_longest(parser, 96)
    _add_course(parser.add_argument_group("how it runs, and what is written"))
    _add_robustness(parser.add_argument_group("disturbed images and other wordings"))
    _add_sweep(parser.add_argument_group("the model's defaults, instead"))


def _add_course(group: Parser) -> None:
    group.add_argument("--resume", action="store_true", help="go on with what --out holds")
    group.add_argument(
        "--baseline",
        type=Path,
        metavar="DIR",
        help="--out of an earlier run on the same data set; adds paired differences to it",
    )
    group.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="worker processes, several with one thread each unless --threads is given (default 1)",
    )
    group.add_argument(
        "--max-minutes",
        type=float,
        default=0.0,
        metavar="M",
        help="stop after this time, --resume goes on (default 0: no cap)",
    )
    group.add_argument("--no-plots", action="store_true", help="write JSON and tables only")


def _add_robustness(group: Parser) -> None:
    group.add_argument(
        "--robustness", action="store_true", help="also corrupted images and other wordings"
    )
    group.add_argument(
        "--robustness-keep", type=int, default=64, metavar="K", help="budget there (default 64)"
    )
    group.add_argument(
        "--robustness-methods",
        default="atp,random",
        metavar="A,B",
        help="methods there, beside dense (default %(default)s)",
    )
    group.add_argument(
        "--robustness-limit", type=int, default=200, metavar="N", help="images there (default 200)"
    )


def _add_sweep(group: Parser) -> None:
    group.add_argument(
        "--sweep-defaults",
        action="store_true",
        help="compare alpha and relevance source, and propose the model's defaults",
    )
    group.add_argument(
        "--sweep-model",
        action="append",
        default=[],
        metavar="DIR",
        help="with --sweep-defaults: the same model exported with another layer or relevance"
        " source; may be given several times",
    )
    group.add_argument(
        "--write-defaults",
        type=Path,
        metavar="YAML",
        help="with --sweep-defaults: put the proposal into this model YAML",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate, print tables, write the report."""
    from edge_atp.evaluation.run import Settings, evaluate

    if args.processes < 1 or (args.limit is not None and args.limit < 1) or args.max_minutes < 0:
        raise ConfigError("--processes and --limit must be at least 1, --max-minutes at least 0")
    if args.write_defaults and not args.sweep_defaults:
        raise ConfigError("--write-defaults needs --sweep-defaults")
    settings = Settings(
        dataset=args.dataset,
        out=args.out,
        config=PipelineConfig(
            model=args.model,
            engine=args.engine,
            num_threads=args.threads,
            seed=args.seed,
            max_new_tokens=args.max_new_tokens,
        ),
        methods=_methods(args.methods),
        keeps=parse_integers(args.keep, "--keep"),
        limit=args.limit,
        long_limit=args.long_limit,
        robustness_keep=args.robustness_keep if args.robustness else 0,
        robustness_methods=parse_names(args.robustness_methods, "--robustness-methods"),
        robustness_limit=args.robustness_limit,
        processes=args.processes,
        max_seconds=60.0 * args.max_minutes,
        resume=args.resume,
        choices=args.choices,
        baseline=args.baseline,
        plots=not args.no_plots,
    )
    console = table_console()
    if args.sweep_defaults:
        from edge_atp.evaluation.defaults import sweep_defaults

        sweep_defaults(settings, console, args.write_defaults, args.sweep_model)
    else:
        evaluate(settings, console)
    return 0


def _methods(text: str) -> tuple[str, ...]:
    """Names from "a,b"; the baselines that must be in every report come last. Empty: all."""
    if text == "all":
        return ()
    names = parse_names(text, "--methods")
    return (*(name for name in names if name not in BASELINES), *BASELINES)
