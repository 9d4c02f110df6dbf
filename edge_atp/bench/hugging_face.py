"""Hugging Face ``generate`` on the same weights, dense, in a process of its own.

A process of its own, because torch's threads and memory would otherwise be counted with the
engine's. It is given pixel values and token ids, so preprocessing and tokenisation are not counted
against it; float32 (or the dtype asked for), fused attention, greedy.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_atp.bench.measure import Run
from edge_atp.bench.questions import Question
from edge_atp.errors import BackendUnavailableError, EdgeAtpError, InferenceError
from edge_atp.pipeline import Pipeline

NAME = "hugging face"
_LOAD_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Request:
    """One question: token ids with one image token per patch, and pixel values."""

    token_ids: NDArray[np.int64]
    pixel_values: NDArray[np.float32]
    max_new_tokens: int


class HuggingFaceContender:
    """The original model, in a worker process. Use as a context manager.

    Args:
        checkpoint: folder of the checkpoint, in safetensors.
        pipeline: the engine's, for the prompt and the preprocessing that both share.
        images: (height, width, 3) uint8 RGB.
        tokens: longest answer per kind of question.
        threads: of torch, 0 for its own choice.
    Raises:
        BackendUnavailableError: torch or transformers is missing, or the checkpoint does not load.
    """

    def __init__(
        self,
        checkpoint: Path,
        pipeline: Pipeline,
        images: Sequence[NDArray[np.uint8]],
        tokens: dict[str, int],
        threads: int = 0,
    ) -> None:
        self.name = NAME
        self._pipeline = pipeline
        self._pixels = [pipeline.preprocess(image)[0] for image in images]
        self._tokens = tokens
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        manifest = pipeline.manifest
        self._process = context.Process(
            target=_serve,
            args=(theirs, str(checkpoint), threads, tuple(manifest.llm.eos_token_ids)),
            daemon=True,
        )
        self._process.start()
        theirs.close()
        self.version = str(self._receive(_LOAD_TIMEOUT_S))

    def answer(self, question: Question, picture: int) -> Run:
        """One answer of the original model."""
        pipeline = self._pipeline
        tokens = pipeline.engine.prompt_tokens(question.text, 1)
        count = pipeline.manifest.vision.num_patches
        ids = np.repeat(tokens.ids, np.where(tokens.is_image, count, 1)).astype(np.int64)
        request = Request(ids, self._pixels[picture], self._tokens[question.kind])
        self._pipe.send(request)
        wall, cpu, token_ids, peak = self._receive(None)
        return Run(
            wall_ms=wall,
            cpu_ms=cpu,
            token_ids=tuple(token_ids),
            compared_wall_ms=wall,
            compared_cpu_ms=cpu,
            visual_kept=count,
            visual_total=count,
            text_tokens=len(tokens.ids) - 1,
            peak_bytes=peak,
        )

    def close(self) -> None:
        """End the worker."""
        self._pipe.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(timeout=5)

    def __enter__(self) -> HuggingFaceContender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self, timeout_s: float | None) -> Any:
        try:
            if not self._pipe.poll(timeout_s):
                raise InferenceError(f"{NAME} did not load within {timeout_s:g} s")
            reply = self._pipe.recv()
        except (EOFError, OSError) as error:
            code = self._process.exitcode
            raise InferenceError(f"the {NAME} process ended (exit status {code})") from error
        if isinstance(reply, EdgeAtpError):
            raise reply
        return reply


def _serve(pipe: Connection, checkpoint: str, threads: int, eos: tuple[int, ...]) -> None:
    """Load, then answer requests until the other side closes the pipe."""
    try:
        try:
            answer, version = _load(checkpoint, threads, eos)
        except Exception as error:  # whatever it is, the other side has to say it
            pipe.send(BackendUnavailableError(f"--against hf {checkpoint}: {error}"))
            return
        pipe.send(version)
        while True:
            pipe.send(answer(pipe.recv()))
    except (EOFError, OSError, KeyboardInterrupt):
        return


def _load(checkpoint: str, threads: int, eos: tuple[int, ...]) -> tuple[Any, str]:
    import torch
    import transformers

    from edge_atp.bench.memory import high_water_bytes, restart_high_water

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if threads:
        torch.set_num_threads(threads)
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="sdpa", use_safetensors=True
    ).eval()

    def answer(request: Request) -> tuple[float, float, tuple[int, ...], int]:
        ids = torch.from_numpy(request.token_ids)[None]
        pixels = torch.from_numpy(request.pixel_values)
        restart_high_water()
        wall, cpu = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids,
                pixel_values=pixels,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=request.max_new_tokens,
                do_sample=False,
                pad_token_id=0,
            )
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        tokens = tuple(t for t in output[0, ids.shape[1] :].tolist() if t not in eos)
        return 1e3 * wall, 1e3 * cpu, tokens, high_water_bytes()

    return answer, f"torch {torch.__version__}, transformers {transformers.__version__}"
