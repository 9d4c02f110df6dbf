"""Cutting visual tokens inside the language model, on a decoder exported in blocks of layers.

One module per method, named like the method in ``edge_atp.pruning``; it holds a class ``Rule``
that asks for the attention rows the method scores with. The scoring itself is the method's.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path

from edge_atp.errors import ConfigError
from edge_atp.pruning.base import InModelPruner
from edge_atp.runtime.in_llm.base import CutRule
from edge_atp.runtime.outputs import Prompt

_INFRASTRUCTURE = frozenset({"base", "caches", "decoder", "passed", "planning"})


@cache  # asked for with every question; looking takes 0.3 ms
def available() -> tuple[str, ...]:
    """Names of the in-LLM methods that this runtime can run."""
    names = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return tuple(sorted(name for name in names if name not in _INFRASTRUCTURE))


def load_rule(pruner: InModelPruner, prompt: Prompt, num_kept: int | None) -> CutRule:
    """The rule that runs ``pruner`` on one prompt.

    Args:
        num_kept: visual tokens of the whole prompt left in the end; None for the method's ratios.
    Raises:
        ConfigError: this runtime has none for it (those it has are listed), or the prompt lacks
            what the method needs.
    """
    if pruner.name not in available():
        raise ConfigError(
            f"{pruner.name} cannot run in the engine's language model; {', '.join(available())}"
            " can. Run it with edge_atp.hf.attach on the original model"
        )
    if prompt.is_visual is None or not prompt.num_visual_tokens:
        raise ConfigError(f"{pruner.name} needs a prompt with visual tokens from embed_prompt")
    rule: CutRule = _rule_of(pruner.name)(pruner, prompt, num_kept)
    return rule


def takes_budget(name: str) -> bool:
    """Whether the number of tokens that the method leaves can be asked for."""
    return name not in available() or bool(_rule_of(name).takes_budget)


def _rule_of(name: str) -> type[CutRule]:
    rule: type[CutRule] = importlib.import_module(f"{__name__}.{name}").Rule
    return rule
