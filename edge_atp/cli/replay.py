"""Ask questions about every frame of a recorded bag, without ROS; the result is a bag again.

examples:
  edge-atp replay drive.mcap --queries questions.yaml --out result.mcap
  edge-atp replay drive.mcap --queries q.yaml --out result.mcap --every 5 --report out/report
  edge-atp replay drive.mcap --queries q.yaml --out new.mcap && edge-atp diff old.mcap new.mcap

The questions file is a list; only `ask` is required:
  - ask: where is the red box?
    query_id: red_box            # default: q1, q2, ...
    cameras: [camera]            # default: all
    at: 12.6                     # seconds from the start of the recording
    until: 14.6
    mode: standing               # or once: the first frame of that time only
    max_rate: 2.0                # answers per second; default: every frame
    prune: {method: atp, keep_ratio: 0.25}   # or max_visual_tokens, score_mass, policy: off
    expect: bottom shelf, slot 3 # the true answer, for the report and --check

The result holds answers, masks and pictures on the live node's topics and with its types. The same
bag, questions, model and machine give the same bytes: latencies are left zero in it (see --timings)
and stand in the report. exit status: 0 done, 1 a wrong answer with --check, 2 an error.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from edge_atp.cli.arguments import add_longest, add_method, add_model, add_seed
from edge_atp.config import PipelineConfig
from edge_atp.errors import ConfigError
from edge_atp.pipeline import Pipeline
from edge_atp.replay.answering import Replayer
from edge_atp.replay.interfaces import load_typestore
from edge_atp.replay.messages import COMPRESSED, PICTURES, MessageFactory
from edge_atp.replay.questions import ReplayQuestion, load_questions
from edge_atp.replay.recording import Recording, open_recording, parse_cameras
from edge_atp.replay.report import Report, write_json
from edge_atp.replay.report_html import write_html
from edge_atp.replay.result_bag import ResultBag

_EXIT_UNEXPECTED_ANSWERS = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``edge-atp replay``."""
    parser.add_argument("bag", type=Path, help="rosbag2: folder, .mcap or .db3")
    parser.add_argument(
        "--queries", type=Path, required=True, metavar="YAML", help="what to ask, see above"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="BAG", help="result: FILE.mcap or a new folder"
    )
    parser.add_argument("--force", action="store_true", help="replace a result that exists")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every n-th frame")
    parser.add_argument(
        "--camera",
        action="append",
        default=[],
        metavar="NAME=TOPIC",
        help="a camera and its topic, repeatable; default: all image topics",
    )
    parser.add_argument("--report", type=Path, metavar="DIR", help="write report.json, report.html")
    parser.add_argument(
        "--check", action="store_true", help="exit with 1 if an answer is not the expected one"
    )
    _add_model_arguments(parser)
    _add_output_arguments(parser)


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model and pruning, for questions that do not say otherwise")
    add_model(group)
    add_method(group)
    group.add_argument(
        "--keep-ratio",
        type=float,
        default=-1.0,
        metavar="R",
        help="share of visual tokens kept, (0, 1] (default: the model's)",
    )
    group.add_argument(
        "--alpha",
        type=float,
        default=-1.0,
        metavar="A",
        help="atp: weight of the question, [0, 1] (default: the model's)",
    )
    add_longest(group, PipelineConfig.max_new_tokens)
    add_seed(group)


def _add_output_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what the result holds")
    group.add_argument(
        "--node",
        default="/vlm_node",
        metavar="NAME",
        help="node that its topics are named after (default %(default)s)",
    )
    group.add_argument(
        "--pictures",
        choices=PICTURES,
        default=COMPRESSED,
        help="compressed: mask_image and overlay/compressed (JPEG); raw: mask_image and overlay"
        " as the live node publishes them; none: neither (default %(default)s)",
    )
    group.add_argument("--scores", action="store_true", help="every patch's score in the masks")
    group.add_argument(
        "--timings", action="store_true", help="measured latencies; no two results are then equal"
    )


def run(args: argparse.Namespace) -> int:
    """Replay, write the result and the report, print a summary."""
    questions = load_questions(args.queries)
    cameras = parse_cameras(args.camera)
    node = f"/{args.node.strip('/')}"
    if node == "/":
        raise ConfigError(f"--node is {args.node!r}; it must be a node's name, as /vlm_node")
    typestore = load_typestore()
    with open_recording(args.bag, typestore, cameras, ignore=node) as recording:
        pipeline = Pipeline.load(_config(args))
        try:
            factory = MessageFactory(typestore, node, args.pictures, args.timings, args.scores)
            with ResultBag(args.out, typestore, factory.topics, args.force) as bag:
                report = _replay(args, pipeline, recording, questions, factory, bag)
        finally:
            pipeline.close()
    if args.report:
        write_json(report, args.report / "report.json")
        write_html(report, args.report / "report.html")
    _print(args, report)
    return _EXIT_UNEXPECTED_ANSWERS if args.check and report.count(right=False) else 0


def _config(args: argparse.Namespace) -> PipelineConfig:
    return PipelineConfig(
        model=args.model,
        engine=args.engine,
        method=args.method,
        keep_ratio=args.keep_ratio,
        alpha=args.alpha,
        max_new_tokens=args.max_new_tokens,
        num_threads=args.threads,
        seed=args.seed,
    )


def _replay(
    args: argparse.Namespace,
    pipeline: Pipeline,
    recording: Recording,
    questions: tuple[ReplayQuestion, ...],
    factory: MessageFactory,
    bag: ResultBag,
) -> Report:
    replayer = Replayer(pipeline, questions, list(recording.topics), args.every)
    if args.check and not any(question.expect for question in questions):
        raise ConfigError(f"--check: no question in {args.queries} says what to `expect`")
    report = Report(_describe(args, pipeline, recording), questions, args.report is not None)
    begun_s = time.perf_counter()
    for _, replies in _with_progress(replayer.run(recording), recording.num_images):
        for reply in replies:
            for topic, message in factory.messages(reply, pipeline.manifest.model_id):
                bag.write(topic, reply.time_ns, message)
            report.add(reply, recording)
    report.run["frames encoded"] = replayer.num_encoded
    report.run["seconds"] = round(time.perf_counter() - begun_s, 2)
    return report


def _describe(args: argparse.Namespace, pipeline: Pipeline, recording: Recording) -> dict[str, Any]:
    budget = pipeline.default_budget
    return {
        "bag": str(args.bag),
        "questions": str(args.queries),
        "cameras": ", ".join(f"{name} ({topic})" for name, topic in recording.topics.items()),
        "recorded seconds": round(recording.duration_s, 2),
        "every": args.every,
        "model": f"{pipeline.manifest.model_id}, {pipeline.manifest.precision.compute}",
        "backend": f"{pipeline.engine.backend} ({pipeline.engine.backend_reason})",
        "default pruning": f"{budget.method}, keep_ratio {budget.value:g}, alpha {budget.alpha:g}",
    }


def _with_progress(images: Iterator[Any], total: int) -> Iterator[Any]:
    """The same items, with a bar on the terminal's stderr; nothing where there is no terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("replay"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("frames, {task.fields[rate]:.1f}/s"),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("replay", total=total, rate=0.0)
        begun_s = time.perf_counter()
        for number, item in enumerate(images, start=1):
            yield item
            rate = number / (time.perf_counter() - begun_s)
            progress.update(task, completed=number, rate=rate)


def _print(args: argparse.Namespace, report: Report) -> None:
    console = Console(highlight=False, soft_wrap=True)
    content = report.as_json()
    for question in content["questions"]:
        texts = ", ".join(f"{text or '(none)'} x{n}" for text, n in question["texts"].items())
        style = "red" if question["wrong"] or not question["num_answers"] else "green"
        mark = f" [{style}]{question['right']}/{question['num_answers']} right[/{style}]"
        console.print(
            f"{escape(question['ask'])} {escape(texts or 'never due')}"
            f"{'' if question['expect'] is None else mark}"
        )
    run = content["run"]
    failed = sum(entry["status"] == "ERROR" for entry in report.entries)
    console.print(
        f"[dim]{content['num_answers']} answers about {run['frames encoded']} frames in"
        f" {run['seconds']:.1f} s{f', {failed} with an error' if failed else ''}:"
        f" {escape(str(args.out))}[/dim]"
    )
    console.print(f"[dim]{escape(run['model'])} on {escape(run['backend'])}[/dim]")
    if args.report:
        console.print(f"[dim]report: {escape(str(args.report / 'report.html'))}[/dim]")
