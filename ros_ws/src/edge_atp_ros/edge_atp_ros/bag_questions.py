"""Executable `bag_questions`: asks the questions of a bag while it is played (see ``asking``)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from edge_atp_ros.process import run_node


def main(args: Sequence[str] | None = None) -> int:
    """Run the node until the last question has ended; returns the exit code."""
    return run_node(_load, args)


def _load() -> type:
    from edge_atp_ros.asking import BagQuestions

    return BagQuestions


if __name__ == "__main__":
    sys.exit(main())
