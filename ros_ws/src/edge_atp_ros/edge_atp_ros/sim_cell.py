"""Executable `sim_cell`: the simulated warehouse cell, from a checkout (see the folder ``sim``).

The cell, its pictures and its physics stand in the repository's ``sim`` and ``models``, which are
not installed with this package; from a workspace built with --symlink-install they are found.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from edge_atp_ros.process import StartError, run_node

_CHECKOUT = Path(__file__).resolve().parents[4]


def main(args: Sequence[str] | None = None) -> int:
    """Run the node until a signal arrives; returns the exit code."""
    return run_node(_load, args)


def _load() -> type:
    if not (_CHECKOUT / "sim" / "node.py").is_file():
        raise StartError(
            f"the simulated cell is not beside this package ({_CHECKOUT}/sim); run it from a"
            " checkout, built with `make setup` or colcon build --symlink-install"
        )
    sys.path.insert(0, str(_CHECKOUT))
    from sim.node import CellNode

    return CellNode


if __name__ == "__main__":
    sys.exit(main())
