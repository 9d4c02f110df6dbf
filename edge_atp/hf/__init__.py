"""Pruning inside unmodified Hugging Face vision-language models.

``attach(model, processor, "atp", keep=64)`` prunes every following call of the model, ``detach``
restores it. One module per VLM family, found by name.
"""

from edge_atp.hf.attach import Handle, attach, detach
from edge_atp.hf.registry import families
from edge_atp.hf.settings import ModelSettings

__all__ = ["Handle", "ModelSettings", "attach", "detach", "families"]
