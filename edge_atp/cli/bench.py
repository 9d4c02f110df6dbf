"""Measure a model directory here: latency by stage, memory, FLOPs, and what pruning saves.

examples:
  edge-atp bench warehouse_tiny                               # atp at 128, 64, 32 tokens, and dense
  edge-atp bench DIR --methods atp,cls_topk,divprune --keep 128,64 --rounds 20 --out out/bench
  edge-atp bench DIR --methods atp,cut+atp --keep 128,64       # DIR exported with --vision-cut
  edge-atp bench DIR --against hf CHECKPOINT --threads 2       # Hugging Face on the same weights
  edge-atp bench DIR --labelled out/test --out out/bench       # accuracy against latency
  edge-atp bench DIR --calibrate                               # then: ask --latency-budget-ms 40
  edge-atp bench DIR --project agx-orin,orin-nano              # published device figures, no run

How to read it. Contenders take turns, so a busy machine disturbs all alike: ratios and CPU time
hold where wall time does not. Short answers and captions are apart, as are pruning's share (dense
over pruned, this engine) and the engine's (Hugging Face over this engine, both dense). Relative
FLOPs depend on the length of the text, which stands beside them. Every question counts as never
asked before; --standing leaves its text embedding and the prompt's beginning in memory.

--calibrate writes this device's cost model to $XDG_CACHE_HOME/edge_atp/calibration (~/.cache), or
to --out FILE. `ask --latency-budget-ms`, questions with prune.policy LATENCY_BUDGET and the node's
parameter latency_budget_ms use it. Ctrl-C ends a measurement and writes what is there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from edge_atp.bench.questions import BUILT_IN, DEFAULT_TOKENS, KINDS, Question, read_questions
from edge_atp.cli.arguments import MODEL_HELP, Parser, add_backend, parse_integers, parse_names
from edge_atp.cli.console import table_console
from edge_atp.config import PipelineConfig
from edge_atp.errors import ConfigError

_DEFAULT_KEEP = "256,128,64,32"
_INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``edge-atp bench``."""
    parser.add_argument(
        "model",
        help=f"{MODEL_HELP}; with --project also what `edge-atp flops` knows, as llava-1.5-7b",
    )
    add_backend(parser)
    parser.add_argument(
        "--methods",
        default="",
        metavar="A,B",
        help="pruning methods; default: the model's own; dense is always in",
    )
    parser.add_argument(
        "--keep",
        default=_DEFAULT_KEEP,
        metavar="K,K",
        help="visual tokens kept (default %(default)s; those above the model's N are left out)",
    )
    _add_asked(parser.add_argument_group("what is asked"))
    _add_measured(parser.add_argument_group("how it is measured"))
    _add_instead(parser.add_argument_group("instead of measuring"))


def _add_asked(asked: Parser) -> None:
    asked.add_argument(
        "--questions",
        type=Path,
        metavar="FILE",
        help="questions, one a line, `caption:` before those with long answers (default: built in)",
    )
    asked.add_argument(
        "--image",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a picture to ask about, repeatable (default: a drawn one)",
    )
    asked.add_argument(
        "--tokens",
        type=int,
        metavar="N",
        help="longest answer, tokens; default 8 for short answers and 64 for captions",
    )
    asked.add_argument(
        "--standing", action="store_true", help="questions were asked before: reuse what they left"
    )


def _add_measured(measured: Parser) -> None:
    measured.add_argument(
        "--rounds",
        type=int,
        default=10,
        metavar="N",
        help="each contender once a round (default 10)",
    )
    measured.add_argument(
        "--against",
        nargs=2,
        metavar=("hf", "CHECKPOINT"),
        help="also Hugging Face generate, dense, on the folder of the original checkpoint",
    )
    measured.add_argument(
        "--labelled",
        type=Path,
        metavar="DIR",
        help="accuracy from a labelled data set, or from the --out of `edge-atp evaluate`",
    )
    measured.add_argument(
        "--labelled-limit", type=int, default=100, metavar="N", help="images of it (default 100)"
    )
    measured.add_argument(
        "--start-up", type=int, default=3, metavar="N", help="fresh interpreters timed (default 3)"
    )
    measured.add_argument("--out", type=Path, metavar="DIR", help="write bench.json and plots")
    measured.add_argument("--no-plots", action="store_true", help="write JSON only")


def _add_instead(group: Parser) -> None:
    instead = group.add_mutually_exclusive_group()
    instead.add_argument(
        "--calibrate", action="store_true", help="fit and write this device's cost model"
    )
    instead.add_argument(
        "--project",
        metavar="DEVICE",
        help="project, not measure: orin-nano, orin-nx, agx-orin, thor (several with commas)",
    )
    group.add_argument(
        "--precision",
        choices=("fp16", "int8", "int4"),
        default="fp16",
        help="with --project: of the weights (default fp16)",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, calibrate or project."""
    if args.rounds < 1 or args.threads < 0 or args.start_up < 0 or args.labelled_limit < 1:
        raise ConfigError(
            "--rounds and --labelled-limit must be at least 1, --threads and --start-up at least 0"
        )
    if args.calibrate:
        return _calibrate(args)
    if args.project:
        return _project(args)
    from edge_atp.bench.run import Settings, bench

    report = bench(
        Settings(
            config=_config(args),
            methods=_methods(args.methods),
            keeps=_keeps(args.keep),
            questions=_questions(args.questions),
            pictures=tuple(args.image),
            rounds=args.rounds,
            tokens=_tokens(args.tokens),
            checkpoint=_checkpoint(args.against),
            labelled=args.labelled,
            labelled_limit=args.labelled_limit,
            standing=args.standing,
            start_up=args.start_up,
            out=args.out,
            plots=not args.no_plots,
        ),
        table_console(),
    )
    return 0 if report["complete"] else _INTERRUPTED


def _calibrate(args: argparse.Namespace) -> int:
    from edge_atp.bench.calibrate import calibrate

    if args.out and args.out.suffix != ".json":
        raise ConfigError(f"--out {args.out}: with --calibrate it is a file ending in .json")
    if "," in args.methods:
        raise ConfigError(f"--methods {args.methods}: --calibrate measures one method")
    calibrate(
        _config(args),
        table_console(),
        method=args.methods,
        rounds=args.rounds,
        questions=_questions(args.questions),
        out=args.out,
    )
    return 0


def _project(args: argparse.Namespace) -> int:
    from edge_atp.bench.projecting import project

    project(
        _config(args).model,
        parse_names(args.project, "--project"),
        table_console(),
        methods=_methods(args.methods),
        keeps=_keeps(args.keep),
        precision=args.precision,
        questions=_questions(args.questions),
        tokens=_tokens(args.tokens),
        checkpoint=_checkpoint(args.against),
        out=args.out,
        plots=not args.no_plots,
    )
    return 0


def _config(args: argparse.Namespace) -> PipelineConfig:
    return PipelineConfig(model=args.model, engine=args.engine, num_threads=args.threads)


def _methods(text: str) -> tuple[str, ...]:
    return parse_names(text, "--methods") if text else ()


def _keeps(text: str) -> tuple[int, ...]:
    keeps = parse_integers(text, "--keep")
    if min(keeps) < 1:
        raise ConfigError(f"--keep is {text!r}; budgets are at least 1")
    return keeps


def _questions(path: Path | None) -> tuple[Question, ...]:
    return read_questions(path) if path else BUILT_IN


def _tokens(longest: int | None) -> dict[str, int]:
    if longest is not None and longest < 1:
        raise ConfigError(f"--tokens is {longest}; at least 1")
    return dict.fromkeys(KINDS, longest) if longest else dict(DEFAULT_TOKENS)


def _checkpoint(against: list[str] | None) -> Path | None:
    if against is None:
        return None
    kind, folder = against
    if kind != "hf":
        raise ConfigError(f"--against {kind}: only hf (Hugging Face) is known; --against hf FOLDER")
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise ConfigError(f"--against hf {folder}: no checkpoint there (it must hold config.json)")
    return path
