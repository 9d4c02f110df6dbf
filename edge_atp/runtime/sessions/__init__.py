"""Inference backends: one module each, found by name and imported lazily.

A backend name is ``<module>-<variant>`` (``ort-cpu``, ``ort-cuda``) or ``<module>`` (``trt``). A
module provides ``CANDIDATES`` (names, best first), ``probe(name)`` and ``open_session(path, name,
options)``.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

from edge_atp.errors import BackendUnavailableError, ConfigError
from edge_atp.runtime.manifest import Manifest
from edge_atp.runtime.sessions.base import Candidate, Session, SessionOptions

_INFRASTRUCTURE = frozenset({"base"})
AUTO = "auto"
# What `auto` prefers, best first; backends not named here follow in alphabetical order.
_PREFERENCE = ("trt", "ort-cuda", "ort-cpu")
# Backends that `auto` passes over: the first builds engines for minutes when a graph is opened, the
# second has not been run on a GPU yet.
_ONLY_BY_NAME = frozenset({"ort-trt", "ort-cuda-graph"})
# Backends that run files built on the device beforehand.
_NEED_ENGINES = frozenset({"trt"})
_OTHER_EXPORT = (
    "take a float directory (NAME:fp32 of a shipped model, else `python -m export` without"
    " --precision int8), or for TensorRT int8 one of --precision int8 --dialect prim18"
)


def available() -> tuple[str, ...]:
    """Names of all backends this version knows, in the order `auto` tries them."""
    names = [name for module in _modules() for name in _load(module).CANDIDATES]
    return tuple(sorted(names, key=lambda n: (_rank(n), n)))


def probe_all() -> tuple[Candidate, ...]:
    """Every backend with whether it can run on this machine and why."""
    return tuple(probe(name) for name in available())


def probe(name: str) -> Candidate:
    """One backend as seen on this machine."""
    result: Candidate = _load(_module_of(name)).probe(name)
    return result


def choose(
    name: str, *, has_engines: bool = False, runs_on: tuple[str, ...] = ()
) -> tuple[str, str]:
    """Resolve a requested backend to one that can run, and the reason for the choice.

    Args:
        name: a backend's name; a module's, for the best of its variants ("ort": CUDA or CPU); or
            "auto" for the best of all.
        has_engines: the model directory holds TensorRT engines; without, auto passes over trt.
        runs_on: backends that have the directory's operators; empty for all.
    Raises:
        ConfigError: unknown name; the choices are listed.
        BackendUnavailableError: it cannot run here, and why. A named backend never falls back.
    """
    names = available()
    lacking = f"the model directory holds int8 operators that only {', '.join(runs_on)} has"
    if name in names:
        if runs_on and name not in runs_on:
            raise BackendUnavailableError(f"backend {name} cannot run: {lacking}; {_OTHER_EXPORT}")
        candidate = probe(name)
        if not candidate.available:
            raise BackendUnavailableError(f"backend {name} cannot run: {candidate.reason}")
        return name, "requested"
    if name != AUTO and name not in _modules():
        choices = dict.fromkeys((AUTO, *_modules(), *names))
        raise ConfigError(f"unknown backend {name!r}; choose one of {', '.join(choices)}")
    rejected: list[str] = []
    tried = [n for n in names if name in (AUTO, _module_of(n)) and n not in _ONLY_BY_NAME]
    for candidate in map(probe, tried):
        if not candidate.available:
            rejected.append(f"{candidate.name}: {candidate.reason}")
        elif runs_on and candidate.name not in runs_on:
            rejected.append(f"{candidate.name}: {lacking}; {_OTHER_EXPORT}")
        elif candidate.name in _NEED_ENGINES and not has_engines:
            rejected.append(f"{candidate.name}: the model directory holds no engines")
        else:
            skipped = f"; not {'; not '.join(rejected)}" if rejected else ""
            return candidate.name, f"{name} chose {candidate.name}: {candidate.reason}{skipped}"
    raise BackendUnavailableError(f"no {name} backend can run here: {'; '.join(rejected)}")


def choose_for(manifest: Manifest, name: str) -> tuple[str, str]:
    """``choose`` for a model directory, by what its manifest says of operators and engines."""
    return choose(name, has_engines=bool(manifest.engines), runs_on=manifest.precision.backends)


def open_session(path: Path, name: str, options: SessionOptions) -> Session:
    """Open the graph at ``path`` with the backend ``name`` (resolved, not "auto")."""
    session: Session = _load(_module_of(name)).open_session(path, name, options)
    return session


def _modules() -> list[str]:
    names = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return [name for name in names if name not in _INFRASTRUCTURE]


def _module_of(name: str) -> str:
    return name.split("-", 1)[0]


def _load(module: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{module}")


def _rank(name: str) -> int:
    return _PREFERENCE.index(name) if name in _PREFERENCE else len(_PREFERENCE)
