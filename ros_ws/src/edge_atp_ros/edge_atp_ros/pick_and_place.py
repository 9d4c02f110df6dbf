"""Executable `pick_and_place`: carries out orders with an arm (see ``placing``)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from edge_atp_ros.process import run_node


def main(args: Sequence[str] | None = None) -> int:
    """Run the node until a signal arrives; returns the exit code."""
    return run_node(_load, args)


def _load() -> type:
    from edge_atp_ros.placing import PickAndPlace

    return PickAndPlace


if __name__ == "__main__":
    sys.exit(main())
