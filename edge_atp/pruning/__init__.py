"""Pruning methods: which visual tokens does the language model get to see?

One small file per method, found by name: ``load("atp", alpha=0.5).select(signals, num_kept=64)``.
Pure mathematics over arrays (NumPy or torch through the array API); knows nothing of models,
sessions or ROS. Methods that act inside the ViT or the language model keep their scoring rule
here and their hook in ``edge_atp.hf``.
"""

# Imported on first use otherwise, which would book its 60 ms on the first question.
import array_api_compat.numpy  # noqa: F401

from edge_atp.pruning.base import Pruner
from edge_atp.pruning.registry import available, load, option_names

__all__ = ["Pruner", "available", "load", "option_names"]
