"""Run and score VQAv2, GQA or COCO captions from their official files, with the official metrics.

examples:
  edge-atp score vqav2 --questions v2_OpenEnded_mscoco_val2014_questions.json \\
      --annotations v2_mscoco_val2014_annotations.json --images val2014 \\
      --model DIR --method atp --keep-tokens 64 --results answers.json
  edge-atp score gqa --questions testdev_balanced_questions.json --results answers.json
  edge-atp score coco_captions --questions captions_val2014.json --results captions.json

With --images the model answers and --results is written, in the form that the benchmark's server
takes; without, an existing --results file is scored. Other benchmarks: lmms-eval, see
edge_atp/evaluation/lmms_eval_plugin/.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console

from edge_atp.cli.arguments import add_json, add_longest, add_method, add_model
from edge_atp.config import PipelineConfig
from edge_atp.errors import ConfigError
from edge_atp.evaluation.benchmarks.run import BENCHMARKS, answer_items, load, write_results
from edge_atp.pipeline import Pipeline
from edge_atp.types import Policy, PruneSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``edge-atp score``."""
    parser.add_argument("benchmark", choices=BENCHMARKS, help="whose files and metric")
    parser.add_argument(
        "--questions",
        type=Path,
        required=True,
        metavar="FILE",
        help="official file of questions (coco_captions: of images and captions)",
    )
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="official file of expected answers (vqav2); default: --questions",
    )
    parser.add_argument(
        "--results",
        type=Path,
        required=True,
        metavar="FILE",
        help="answers: written with --images, else read",
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="folder of the images; answer, then score"
    )
    add_model(parser)
    add_method(parser)
    parser.add_argument(
        "--keep-tokens",
        type=int,
        metavar="K",
        help="most visual tokens kept (default: the model's ratio)",
    )
    add_longest(parser, 32)
    parser.add_argument("--limit", type=int, metavar="N", help="answer the first N only")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Answer if asked to, score, print."""
    benchmark = load(args.benchmark)
    if args.images:
        items = benchmark.read_items(args.questions)[: args.limit]
        pipeline = Pipeline.load(
            PipelineConfig(
                model=args.model,
                engine=args.engine,
                num_threads=args.threads,
                max_new_tokens=args.max_new_tokens,
            )
        )
        try:
            answers = answer_items(pipeline, items, args.images, _prune_spec(args))
        finally:
            pipeline.close()
        write_results(benchmark, answers, args.results)
    elif args.limit:
        raise ConfigError("--limit needs --images: it bounds what the model answers")
    answers = benchmark.read_results(args.results)
    scores = benchmark.score(args.annotations or args.questions, answers, bool(args.limit))
    if args.json:
        print(json.dumps(scores))
    else:
        _print(scores)
    return 0


def _prune_spec(args: argparse.Namespace) -> PruneSpec:
    if args.keep_tokens is None:
        return PruneSpec(method=args.method)
    return PruneSpec(Policy.TOKEN_BUDGET, method=args.method, max_visual_tokens=args.keep_tokens)


def _print(scores: dict[str, object]) -> None:
    console = Console(highlight=False)
    for name, value in scores.items():
        if isinstance(value, dict):
            console.print(f"{name}:")
            for part, number in value.items():
                console.print(f"  {part}: {number:.2f}")
        else:
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            console.print(f"{name}: {shown}")
