"""Which pruning methods can this model run, and what do the others miss?"""

from __future__ import annotations

from collections.abc import Sequence

from edge_atp.evaluation.arms import engine_methods
from edge_atp.pipeline import Pipeline
from edge_atp.signals import why_not_method


def probe_methods(
    pipeline: Pipeline, methods: Sequence[str] = ()
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Split methods into those that run and those that miss an encoder output.

    Args:
        pipeline: a loaded model.
        methods: names; empty for all that an exported model could run.
    Returns:
        The usable ones in order, and name -> reason of the others.
    """
    names = methods or engine_methods(pipeline.manifest)
    reasons = {name: why_not_method(name, pipeline.manifest) for name in names}
    usable = tuple(name for name in names if not reasons[name])
    return usable, {name: reason for name, reason in reasons.items() if reason}
