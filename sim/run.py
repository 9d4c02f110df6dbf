"""The closed loop: camera, VLM node, planner and arm in the simulated cell, and who was right.

    python -m sim.run [--orders 3] [--seed 3] [--rate 1.0] [--out out/sim]      (or: make sim)

Runs the processes of ``edge_atp_ros.simulation`` until every order has ended. Exit code 0: all
were carried out, and rightly so by the simulation's own truth; 1: not; 130: interrupted.
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
    from rich.console import Console

    from sim.watch import Watcher

_PATIENCE_S = 240.0  # wall time for one order, on a slow and busy machine


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the loop; returns the exit code."""
    stop = StopRequest()
    parser = argparse.ArgumentParser(prog="sim.run", description=__doc__.splitlines()[0])
    parser.add_argument("--orders", type=int, default=3, help="how many (default %(default)s)")
    parser.add_argument("--seed", type=int, default=3, help="picks the scene (default %(default)s)")
    parser.add_argument("--rate", type=float, default=1.0, help="speed of simulated time")
    parser.add_argument("--hazard", default="", help="person, cone or pallet on the floor")
    parser.add_argument("--model", default="", help="model directory, or a shipped model's name")
    parser.add_argument("--params", default="", help="parameter file instead of params/sim.yaml")
    parser.add_argument("--out", type=Path, default=Path("out/sim"), help="folder for pictures")
    return _run(parser.parse_args(arguments), stop)


def _run(args: argparse.Namespace, stop: StopRequest) -> int:
    # Another robot or demo on the network must not answer, or be heard. Humble ignores this.
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    # Imported here: an interrupt while they load is already in hand.
    import rclpy
    from ament_index_python.packages import get_package_share_directory
    from edge_atp_ros.runner import Runner
    from edge_atp_ros.simulation import SimArguments, simulation
    from edge_atp_ros.system import PACKAGE
    from rclpy.signals import SignalHandlerOptions
    from rich.console import Console

    from sim.watch import Watcher

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    table = simulation(
        SimArguments(
            model=args.model,
            params_file=args.params,
            seed=args.seed,
            num_orders=args.orders,
            rate=args.rate,
            hazard=args.hazard,
        ),
        Path(get_package_share_directory(PACKAGE)) / "launch",
    )
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    watcher = Watcher()
    try:
        with Runner(table, args.out / "logs") as runner:
            console.print(f"started {', '.join(process.name for process in table)}")
            limit_s = time.monotonic() + _PATIENCE_S * max(1, args.orders)
            while not watcher.finished and time.monotonic() < limit_s:
                if stop:
                    print("interrupted", file=sys.stderr)
                    return 130
                for line in watcher.step():
                    console.print(line)
                if ended := runner.ended():
                    name = next(iter(ended))
                    console.print(f"[red]{name} ended; it said:[/red]")
                    console.print(runner.log(name)[-3000:], markup=False)
                    return 1
        return _report(console, watcher, args)
    finally:
        watcher.destroy_node()
        rclpy.shutdown()


def _report(console: Console, watcher: Watcher, args: argparse.Namespace) -> int:
    from sim import report

    report.print_orders(console, watcher.records)
    if not watcher.finished:
        console.print("[red]not every order has ended in time[/red]")
    if report.write_sheet(watcher.records, args.out / "contact_sheet.png"):
        console.print(f"pictures: {args.out / 'contact_sheet.png'}")
    if film := report.write_film(watcher.film, args.out):
        console.print(f"film: {film}")
    done = watcher.finished and all(record.right for record in watcher.records)
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
