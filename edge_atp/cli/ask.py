"""Answer a question about an image file, or about several.

examples:
  edge-atp ask docs/cell.jpg "what is on the middle shelf, slot 3?"
  edge-atp ask docs/cell.jpg "where is the red box?" --keep-ratio 0.25 --overlay kept.png
  edge-atp ask docs/cell.jpg "how many boxes are there?" --method none   # dense
  edge-atp ask docs/cell.jpg "where is the red box?" --latency-budget-ms 40  # K by time
  edge-atp ask docs/cell.jpg "is slot 2 on the top shelf empty?" --choices yes,no

How many patches stay: --keep-ratio of the image's, at most --keep-tokens, or as many as a time
budget allows; without any of them the model's own ratio. Under the answer stand the tokens kept and
the milliseconds of each stage, which add up to the total.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape

from edge_atp.cli.arguments import add_json, add_longest, add_method, add_model
from edge_atp.cli.console import engine_line
from edge_atp.config import PipelineConfig
from edge_atp.errors import ImageError, InvalidQueryError
from edge_atp.mask import overlay
from edge_atp.pipeline import Pipeline
from edge_atp.types import Answer, Frame, Policy, PruneSpec, Query

# Stages in the order they run; they add up to the total.
STAGES = ("queue_wait", "preprocess", "vision_encode", "prune", "prefill", "decode")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``edge-atp ask``."""
    parser.add_argument("image", type=Path, help="image file (JPEG, PNG, ...)")
    parser.add_argument("question", help="what to ask about it")
    parser.add_argument(
        "--image",
        dest="more_images",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a further image of the same question; may be repeated",
    )
    parser.add_argument(
        "--choices",
        metavar="A,B,...",
        help="closed answer set: the most probable of these, with its probability",
    )
    parser.add_argument(
        "--then",
        action="append",
        default=[],
        metavar="QUESTION",
        help="ask on about the same images, in one conversation; may be repeated",
    )
    add_model(parser)
    _add_pruning(parser)
    add_longest(parser, PipelineConfig.max_new_tokens)
    parser.add_argument(
        "--overlay", type=Path, metavar="FILE", help="write the kept patches as a picture"
    )
    add_json(parser)


def _add_pruning(parser: argparse.ArgumentParser) -> None:
    add_method(parser)
    parser.add_argument(
        "--keep-ratio",
        type=float,
        metavar="R",
        help="share of visual tokens kept, (0, 1] (default: the model's)",
    )
    parser.add_argument(
        "--keep-tokens", type=int, metavar="K", help="most visual tokens kept of each image"
    )
    parser.add_argument(
        "--latency-budget-ms",
        type=float,
        metavar="MS",
        help="keep as many tokens as this device answers within MS milliseconds; needs"
        " `edge-atp bench MODEL --calibrate` once",
    )
    parser.add_argument(
        "--calibration",
        default="",
        metavar="FILE",
        help="with --latency-budget-ms: what `bench --calibrate --out FILE` wrote (default: where"
        " it writes without --out)",
    )
    parser.add_argument(
        "--alpha",
        type=float,
        metavar="A",
        help="atp: weight of the question, [0, 1]; 0 takes what is salient, whatever is asked"
        " (default: the model's)",
    )


def run(args: argparse.Namespace) -> int:
    """Ask, print each answer and where the time went."""
    paths = [args.image, *args.more_images]
    frames = [
        Frame(read_image(path), frame_id=path.name, camera=f"image{number}")
        for number, path in enumerate(paths)
    ]
    query = Query(
        args.question,
        choices=tuple(args.choices.split(",")) if args.choices else (),
        max_new_tokens=args.max_new_tokens,
        prune=_prune_spec(args),
        conversation_id="ask" if args.then else "",
    )
    pipeline = Pipeline.load(
        PipelineConfig(
            model=args.model,
            engine=args.engine,
            num_threads=args.threads,
            calibration=args.calibration,
        )
    )
    try:
        pipeline.check(query, len(frames))
        # Before the clock starts: a robot's node has them open, too.
        pipeline.open_graphs(pipeline.wants_cut(query, len(frames)))
        engine = escape(engine_line(pipeline.engine))
        for number, text in enumerate([args.question, *args.then]):
            answer = pipeline.answer(replace(query, text=text), [] if number else frames)
            if args.overlay and not number:
                _write_overlay(args.overlay, answer, text)
            if args.json:
                print(json.dumps(_as_json(answer)))
            else:
                _print(answer, engine, None if number else args.overlay)
    finally:
        pipeline.close()
    return 0


def read_image(path: Path) -> NDArray[np.uint8]:
    """Image file -> (height, width, 3) uint8 RGB.

    Raises:
        ImageError: missing, unreadable, or not an image OpenCV knows.
    """
    try:
        encoded = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    except OSError as error:
        raise ImageError(f"cannot read image {path}: {error.strerror}") from error
    image = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if encoded.size else None
    if image is None:
        raise ImageError(f"{path} is not an image that can be decoded (JPEG, PNG, BMP, ...)")
    rgb: NDArray[np.uint8] = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return rgb


def _prune_spec(args: argparse.Namespace) -> PruneSpec:
    budgets = ("keep_ratio", "keep_tokens", "latency_budget_ms")
    given = [f"--{name.replace('_', '-')}" for name in budgets if getattr(args, name) is not None]
    if len(given) > 1:
        raise InvalidQueryError(f"give {' or '.join(given)}, not both: each sets what stays")
    spec = {"method": args.method, "alpha": args.alpha}
    if args.keep_ratio is not None:
        return PruneSpec(Policy.KEEP_RATIO, keep_ratio=args.keep_ratio, **spec)
    if args.keep_tokens is not None:
        return PruneSpec(Policy.TOKEN_BUDGET, max_visual_tokens=args.keep_tokens, **spec)
    if args.latency_budget_ms is not None:
        seconds = args.latency_budget_ms / 1e3
        return PruneSpec(Policy.LATENCY_BUDGET, latency_budget_s=seconds, **spec)
    return PruneSpec(**spec)


def _write_overlay(path: Path, answer: Answer, question: str) -> None:
    kept = f"{answer.tokens.visual_kept}/{answer.tokens.visual_total} tokens, {answer.method}"
    caption = f"Q: {question}\nA: {answer.text}   [{kept}]"
    pictures = [overlay(mask, caption if not n else "") for n, mask in enumerate(answer.masks)]
    picture = _side_by_side(pictures)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        written = cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    except cv2.error:
        written = False
    if not written:
        raise ImageError(f"cannot write --overlay {path}: use a name ending in .png or .jpg")


def _side_by_side(pictures: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Pictures (h_i, w_i, 3) in a row, the lower ones filled up with black."""
    height = max(len(picture) for picture in pictures)
    filled = [np.pad(picture, ((0, height - len(picture)), (0, 0), (0, 0))) for picture in pictures]
    return np.hstack(filled)


def _as_json(answer: Answer) -> dict[str, object]:
    return {
        "text": answer.text,
        "status": answer.status.name,
        "confidence": answer.confidence,
        "confidence_kind": answer.confidence_kind.name,
        "choice_probs": list(answer.choice_probs),
        "method": answer.method,
        "model_id": answer.model_id,
        "tokens": asdict(answer.tokens),
        "seconds": asdict(answer.times),
        "reused": asdict(answer.reused),
        "cuts": [asdict(cut) for cut in answer.cuts],
        "kv_bytes": answer.kv_bytes,
        "predicted_seconds": answer.predicted_s,
        "kept_indices": np.flatnonzero(answer.masks[0].kept).tolist(),
    }


def _print(answer: Answer, engine: str, overlay_path: Path | None) -> None:
    console = Console(highlight=False)
    console.print(f"[bold]{escape(answer.text)}[/bold]")
    tokens = answer.tokens
    console.print(
        f"[dim]{answer.method}: kept {tokens.visual_kept}/{tokens.visual_total} visual tokens,"
        f" confidence {answer.confidence or 0.0:.2f}, {answer.status.name}[/dim]"
    )
    laps = ", ".join(f"{name} {1e3 * getattr(answer.times, name):.1f}" for name in STAGES[1:])
    predicted = "" if answer.predicted_s is None else f", predicted {1e3 * answer.predicted_s:.1f}"
    console.print(f"[dim]{1e3 * answer.times.total:.1f} ms{predicted}: {laps}[/dim]")
    if answer.cuts:
        left = ", ".join(f"{cut.part} layer {cut.layer}: {cut.num_kept}" for cut in answer.cuts)
        console.print(f"[dim]left by {left}; KV cache {answer.kv_bytes / 1e6:.2f} MB[/dim]")
    console.print(f"[dim]{engine}[/dim]")
    if overlay_path:
        console.print(f"[dim]kept patches: {overlay_path}[/dim]")
