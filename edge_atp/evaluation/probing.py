"""Which pruning methods can this model run? Asked by trying, on a grey image."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from edge_atp.budget import plan
from edge_atp.errors import MissingSignalError
from edge_atp.evaluation.arms import engine_methods
from edge_atp.pipeline import Pipeline
from edge_atp.types import Frame, Policy, PruneSpec


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
    size = pipeline.manifest.preprocess.size
    encoding = pipeline.encode(Frame(np.full((size, size, 3), 128, np.uint8)))
    usable: list[str] = []
    refused: dict[str, str] = {}
    for method in methods or engine_methods(pipeline.manifest):
        spec = PruneSpec(Policy.TOKEN_BUDGET, method=method, max_visual_tokens=1)
        try:
            # What a method finds odd about a grey image says nothing about the model.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pipeline.select(encoding, "what is this?", plan(spec, pipeline.default_budget))
        except MissingSignalError as error:
            refused[method] = str(error)
        else:
            usable.append(method)
    return tuple(usable), refused
