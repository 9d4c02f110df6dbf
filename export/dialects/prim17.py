"""Dialect ``prim18`` at opset 17, the newest that TensorRT 8.6 reads."""

from __future__ import annotations

from typing import ClassVar

from export.dialects import prim18


class Form(prim18.Form):
    """Dialect ``prim17``; only the reductions are written differently."""

    opset: ClassVar[int] = 17
