"""Cutting or merging patches inside the vision encoder, on one exported in groups of layers.

One module per method, named like the method in ``edge_atp.pruning``; it holds a class ``Rule``
that says at which layers patches leave, and glues the method's own functions to the groups.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path

from edge_atp.errors import ConfigError
from edge_atp.pruning.base import InModelPruner
from edge_atp.runtime.in_vit.base import EncoderRule
from edge_atp.runtime.manifest import VisionSpec

_INFRASTRUCTURE = frozenset({"base", "encoder"})


@cache  # asked for with every question; looking takes 0.3 ms
def available() -> tuple[str, ...]:
    """Names of the methods that cut inside the vision encoder here."""
    names = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return tuple(sorted(name for name in names if name not in _INFRASTRUCTURE))


def load_rule(pruner: InModelPruner, vision: VisionSpec, num_kept: int | None) -> EncoderRule:
    """The rule that runs ``pruner`` on one image.

    Args:
        num_kept: patches the method leaves in the end; None for its own ratios.
    Raises:
        ConfigError: there is none for it, or its layers do not fit this encoder.
    """
    if pruner.name not in available():
        raise ConfigError(
            f"{pruner.name} cannot run in the engine's vision encoder; {', '.join(available())}"
            " can. Run it with edge_atp.hf.attach on the original model"
        )
    module = importlib.import_module(f"{__name__}.{pruner.name}")
    rule: EncoderRule = module.Rule(pruner, vision, num_kept)
    return rule
