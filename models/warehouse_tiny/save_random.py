"""Write a checkpoint with untrained weights in the final layout, to develop loaders against.

Run: ``python -m models.warehouse_tiny.save_random out/warehouse_tiny/random``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from models.warehouse_tiny.model import build_model, save_checkpoint


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    save_checkpoint(build_model(arguments.seed), arguments.folder)


if __name__ == "__main__":
    main()
