"""The shipped bag, and `edge-atp replay` on it in this process."""

from __future__ import annotations

from pathlib import Path

from edge_atp.cli import main

BAG = Path(__file__).resolve().parents[2] / "launch" / "bags" / "warehouse_cell"
QUESTIONS = BAG / "questions.yaml"


def replay(out, *options, bag=BAG, questions=QUESTIONS):
    """Run `edge-atp replay`; returns its exit status."""
    words = ["replay", bag, "--queries", questions, "--out", out, "--threads", 1, *options]
    return main([str(word) for word in words])


def diff(*words):
    """Run `edge-atp diff`; returns its exit status."""
    return main(["diff", *map(str, words)])
