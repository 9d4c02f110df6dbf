"""One training stage: steps, checkpoints, log. Knows nothing of what is trained.

A checkpoint holds weights, heads, optimisers and the step; batches are pure functions of the step,
so an interrupted run continues on the same curve.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from models.warehouse_tiny.config import StageConfig
from models.warehouse_tiny.heads import DenseHeads
from models.warehouse_tiny.model import WarehouseModel
from models.warehouse_tiny.optim import build_optimisers, learning_rate
from models.warehouse_tiny.parallel import any_process, average_gradients, rank
from models.warehouse_tiny.scenes import prefetch

SAVE_EVERY_S = 120.0


class Stage(Protocol):
    """What a stage must offer."""

    name: str

    def make_batch(self, step: int) -> Any:
        """Batch of a step, a pure function of the step."""

    def loss(
        self, model: WarehouseModel, heads: DenseHeads, batch: Any, step: int
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss and values to log."""


class Run:
    """Weights, optimisers and position of one stage."""

    def __init__(
        self,
        folder: Path,
        stage: Stage,
        settings: StageConfig,
        model: WarehouseModel,
        heads: DenseHeads,
        trained: list[torch.nn.Module | torch.nn.Parameter],
    ) -> None:
        self.folder = folder
        self.stage = stage
        self.settings = settings
        self.model = model
        self.heads = heads
        self.optimisers = build_optimisers(trained, settings)
        self.parameters = [
            p for o in self.optimisers for group in o.param_groups for p in group["params"]
        ]
        self.step = 0
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def state_path(self) -> Path:
        """Checkpoint of this stage."""
        return self.folder / f"{self.stage.name}.pt"

    def save(self) -> None:
        """Write the checkpoint; the old one stays until the new one is complete."""
        if rank() != 0:
            return
        temporary = self.state_path.with_suffix(".tmp")
        torch.save(
            {
                "step": self.step,
                "model": self.model.state_dict(),
                "heads": self.heads.state_dict(),
                "optimisers": [o.state_dict() for o in self.optimisers],
            },
            temporary,
        )
        temporary.replace(self.state_path)

    def resume(self) -> None:
        """Continue from the checkpoint.

        Raises:
            ValueError: it belongs to a longer run than the settings describe.
        """
        state = torch.load(self.state_path, map_location="cpu")
        if state["step"] > self.settings.steps:
            raise ValueError(
                f"{self.state_path} is at step {state['step']}, the stage has "
                f"{self.settings.steps}; delete it or raise --steps"
            )
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step = state["step"]

    def train(
        self,
        max_seconds: float | None = None,
        evaluate: Callable[[], dict[str, float]] | None = None,
        eval_every: int = 200,
        until: int | None = None,
    ) -> bool:
        """Run to the last step or the time limit; returns whether the stage is complete."""
        started = saved = time.monotonic()
        stop = min(self.settings.steps, until or self.settings.steps)
        for step, batch in prefetch(self.stage.make_batch, self.step, stop):
            log = self._step(step, batch)
            self.step = step + 1
            now = time.monotonic()
            if self.step % 20 == 0 or self.step == stop:
                self._log({"step": self.step, "seconds": round(now - started, 1), **log})
            if (
                rank() == 0
                and evaluate is not None
                and (self.step % eval_every == 0 or self.step == stop)
            ):
                self._log({"step": self.step, "eval": evaluate()})
            if now - saved > SAVE_EVERY_S:
                self.save()
                saved = now
            late = max_seconds is not None and now - started > max_seconds
            if max_seconds is not None and self.step % 10 == 0 and any_process(late):
                break
        self.save()
        return self.step >= self.settings.steps

    def _step(self, step: int, batch: Any) -> dict[str, float]:
        rate = learning_rate(self.settings, step)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
        with _autocast():
            loss, log = self.stage.loss(self.model, self.heads, batch, step)
        loss.backward()
        average_gradients(self.parameters)
        torch.nn.utils.clip_grad_norm_(self.parameters, 4.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return {"loss": loss.item(), "rate": rate, **log}

    def _log(self, record: dict[str, Any]) -> None:
        if rank() != 0:
            return
        rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in record.items()}
        line = json.dumps({"stage": self.stage.name, **rounded})
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)


def _autocast() -> AbstractContextManager[Any]:
    """bf16 where the processor multiplies it natively, else fp32."""
    if torch.cuda.is_available():
        return torch.autocast("cuda", torch.bfloat16)
    if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.autocast("cpu", torch.bfloat16)
    return nullcontext()
