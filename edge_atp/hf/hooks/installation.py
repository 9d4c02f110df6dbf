"""Everything done to a model, recorded so that it can be undone exactly.

Only PyTorch forward hooks and attributes of the one instance are used: no class is swapped and no
library function is replaced.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

_MISSING = object()


class Installation:
    """Hooks and instance attributes of one attached model."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def before(self, module: Any, hook: Callable[..., Any]) -> None:
        """Call ``hook(module, args, kwargs)`` before ``module``; it may return new arguments."""
        self._undo.append(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def after(self, module: Any, hook: Callable[..., Any], *, first: bool = False) -> None:
        """Call ``hook(module, args, kwargs, output)``; it may return a new output.

        first: run before hooks that are already there.
        """
        handle = module.register_forward_hook(hook, with_kwargs=True, prepend=first)
        self._undo.append(handle.remove)

    def wrap(self, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        """Shadow the bound method ``owner.name`` by ``wrapper(original, *args, **kwargs)``.

        The wrapper keeps the original's signature: transformers reads it to pick arguments.
        """
        original = getattr(owner, name)

        @functools.wraps(original)
        def shadow(*args: Any, **kwargs: Any) -> Any:
            return wrapper(original, *args, **kwargs)

        previous = owner.__dict__.get(name, _MISSING)
        owner.__dict__[name] = shadow

        def restore() -> None:
            if previous is _MISSING:
                owner.__dict__.pop(name, None)
            else:
                owner.__dict__[name] = previous

        self._undo.append(restore)

    def undo(self) -> None:
        """Remove everything, last first."""
        while self._undo:
            self._undo.pop()()
