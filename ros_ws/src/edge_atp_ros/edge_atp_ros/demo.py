"""The demo: plays the recorded cell, asks about it dense and pruned, checks every answer.

    python -m edge_atp_ros.demo [--out out/demo] [--rate 1.0]

Runs the processes of ``system.warehouse`` with the recording's own clock, so that an answer's
stamp says which moment of the recording it is about. Exit code 0: every answer came and was
right; 1: not; 130: interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge_atp_ros.process import StopRequest

if TYPE_CHECKING:
    from edge_atp_ros.demo_client import DemoClient
    from edge_atp_ros.runner import Runner

_GRACE_S = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    stop = StopRequest()
    parser = argparse.ArgumentParser(prog="edge_atp_ros.demo", description="Run the demo.")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for pictures")
    parser.add_argument("--rate", type=float, default=1.0, help="speed of the recording")
    parser.add_argument("--model", default="", help="model directory, or a shipped model's name")
    args = parser.parse_args(arguments)
    try:
        return _run(args, stop)
    except _InterruptedError:
        print("interrupted", file=sys.stderr)
        return 130


class _InterruptedError(Exception):
    """The user pressed Ctrl-C."""


def _run(args: argparse.Namespace, stop: StopRequest) -> int:
    # Another robot or demo on the network must not answer, or be heard. Humble ignores this.
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    # Imported here: an interrupt while they load is already in hand.
    from ament_index_python.packages import get_package_share_directory
    from rich.console import Console

    from edge_atp_ros import demo_report
    from edge_atp_ros.demo_client import load_checks, open_client
    from edge_atp_ros.runner import Runner
    from edge_atp_ros.system import DEFAULT_BAG, PACKAGE, WarehouseArguments, warehouse

    # A log file or a pipe has no width of its own, and 80 columns would break the tables.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    share = Path(get_package_share_directory(PACKAGE)) / "launch"
    checks = load_checks(share / "bags" / DEFAULT_BAG / "questions.yaml")
    table = warehouse(
        WarehouseArguments(
            model=args.model,
            use_sim_time=True,
            player_parameters={
                "rate": args.rate,
                "loop": False,
                "wait_for_subscriber": _GRACE_S,
                "start_delay": 1.0,
            },
        ),
        share,
    )
    with open_client() as client, Runner(table, args.out / "logs") as runner:
        console.print(f"started {', '.join(process.name for process in table)}; playing the cell")
        _wait_for_node(client, stop, runner)
        client.watch_camera()
        limit_s = time.monotonic() + max(check.until for check in checks) / args.rate + _GRACE_S
        while not client.finished(checks) and time.monotonic() < limit_s:
            if stop:
                raise _InterruptedError
            for text in client.step(checks):
                console.print(text)
        answers = client.outcomes(checks)
        planner_log = runner.log("planner")
    demo_report.print_answers(console, answers)
    demo_report.print_latency(console, answers)
    demo_report.print_picks(console, planner_log)
    sheet = demo_report.write_pictures(answers, args.out)
    console.print(f"pictures: {args.out}/*.png, all on one sheet: {sheet}")
    wrong = [answer for answer in answers if answer.fault]
    for answer in wrong:
        console.print(f"[red]{answer.title}: {answer.fault}[/red]")
    return 1 if wrong else 0


def _wait_for_node(client: DemoClient, stop: StopRequest, runner: Runner) -> None:
    limit_s = time.monotonic() + _GRACE_S
    while not client.ready():
        if stop:
            raise _InterruptedError
        if time.monotonic() > limit_s:
            log = runner.log("vlm_node")[-3000:]
            raise SystemExit(f"the VLM node is not active after {_GRACE_S:g} s; it said:\n{log}")


if __name__ == "__main__":
    sys.exit(main())
