"""Look at answers in the rerun viewer: image, kept patches, scores, latencies over time.

examples:
  edge-atp view result.mcap --bag drive.mcap                 # opens a window
  edge-atp view result.mcap --bag drive.mcap --save out.rrd  # no display; later: rerun out.rrd
  edge-atp view --live --save out.rrd                        # a running node; needs ROS 2

result.mcap comes from `edge-atp replay`, or is a recording of the live node's topics. Scores are
in it with `edge-atp replay --scores` (live: parameter publish_scores), latencies with --timings.
Needs rerun: pip install 'edge-atp[view]'.
"""

from __future__ import annotations

import argparse
import importlib
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from edge_atp.errors import BackendUnavailableError, ConfigError
from edge_atp.replay.questions import load_questions
from edge_atp.viewing.bag import read_events
from edge_atp.viewing.rerun_log import RerunLog


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``edge-atp view``."""
    parser.add_argument("result", type=Path, nargs="?", help="bag with answers and masks")
    parser.add_argument(
        "--bag", type=Path, metavar="BAG", help="the recording, for its images (default: result's)"
    )
    parser.add_argument(
        "--queries", type=Path, metavar="YAML", help="the questions asked, for their texts"
    )
    parser.add_argument("--save", type=Path, metavar="FILE.rrd", help="write a file, open nothing")
    parser.add_argument(
        "--connect",
        default="",
        metavar="URL",
        help="a viewer that runs: rerun+http://HOST:9876/proxy",
    )
    parser.add_argument("--live", action="store_true", help="the topics of a running node instead")
    parser.add_argument(
        "--node", default="vlm_node", metavar="NAME", help="with --live (default %(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=0.0,
        metavar="S",
        help="with --live: end then (default 0: never)",
    )


def run(args: argparse.Namespace) -> int:
    """Show, or save, and say what there was."""
    if args.live == (args.result is not None):
        raise ConfigError("give a result bag, or --live for a running node, not both")
    if args.save is not None and args.save.suffix != ".rrd":
        raise ConfigError(f"--save is {args.save}; rerun opens files named FILE.rrd")
    return _live(args) if args.live else _recorded(args)


def _recorded(args: argparse.Namespace) -> int:
    questions = {}
    if args.queries:
        questions = {q.query.query_id: q.query.text for q in load_questions(args.queries)}
    events = list(read_events(args.result, args.bag, questions))
    log = RerunLog(args.save, args.connect)
    for event in events:
        log.show(event)
    log.close()
    counts = Counter(type(event).__name__ for event in events)
    masks = sum(len(getattr(event, "masks", ())) for event in events)
    where = f": {args.save}" if args.save else ""
    Console(highlight=False).print(
        f"{counts['ShownAnswer']} answers, {masks} masks, {counts['ShownImage']} images"
        f"{escape(where)}"
    )
    return 0


def _live(args: argparse.Namespace) -> int:
    try:
        viewing = importlib.import_module("edge_atp_ros.viewing")
    except ImportError as error:
        raise BackendUnavailableError(
            f"--live needs the ROS 2 workspace ({error}): source it, or run"
            " scripts/with_ros edge-atp view --live in a checkout"
        ) from error
    status: int = viewing.watch(RerunLog(args.save, args.connect), args.node, args.seconds)
    return status
