"""The engine against Hugging Face ``generate`` on the same weights, dense and pruned.

Alternating runs in one process, so that a busy machine disturbs all alike; medians of wall time
and of process CPU time; the ratios are what counts. Needs the `export` extra.

Run: ``python -m benchmarks.pipeline --checkpoint DIR --engine DIR [--json OUT]``.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table

from edge_atp.preprocess import Preprocessor
from edge_atp.pruning import load
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.manifest import PreprocessSpec
from edge_atp.runtime.model_dir import ModelDirectory
from edge_atp.runtime.outputs import Prompt
from edge_atp.types import VisualSignals

Tokens = tuple[int, ...]


class EngineContender:
    """One engine at one keep ratio; a call answers once and notes the seconds per stage."""

    def __init__(self, engine: Engine, pixels: Any, question: str, num_kept: int, new: int):
        self.engine, self.pixels, self.question = engine, pixels, question
        self.num_kept, self.new = num_kept, new
        self.stages: list[list[float]] = []
        self.pruner = load("atp")

    def __call__(self) -> Tokens:
        """Encode, select, project, prefill, decode; the text embedding is not cached."""
        engine, clock = self.engine, [time.perf_counter()]
        engine.forget_texts()
        vision = engine.encode_image(self.pixels)
        clock.append(time.perf_counter())
        if self.num_kept < len(vision.patch_features):
            signals = VisualSignals(
                cls_attention=vision.cls_attention,
                patch_embeds=vision.patch_embeds,
                text_embed=engine.encode_text(self.question),
            )
            kept = self.pruner.select(signals, self.num_kept).kept_indices
        else:
            kept = np.arange(len(vision.patch_features))
        clock.append(time.perf_counter())
        prompt: Prompt = engine.embed_prompt(
            self.question, [engine.project(vision.patch_features, kept)]
        )
        generation = engine.generate(
            prompt, max_new_tokens=self.new, on_prefill=lambda: clock.append(time.perf_counter())
        )
        clock.append(time.perf_counter())
        self.stages.append(list(np.diff(clock)))
        return generation.token_ids


def hugging_face(
    checkpoint: Path, engine: Engine, pixels: Any, question: str, new: int
) -> Callable[[], Tokens]:
    """``generate`` of the original model, float32, fused attention, dense."""
    model = transformers.LlavaForConditionalGeneration.from_pretrained(
        str(checkpoint), dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    tokens = engine.prompt_tokens(question, 1)
    count = engine.directory.manifest.vision.num_patches
    ids = torch.from_numpy(np.repeat(tokens.ids, np.where(tokens.is_image, count, 1)))[None]
    image, mask = torch.from_numpy(pixels), torch.ones_like(ids)
    end = set(engine.directory.manifest.llm.eos_token_ids)

    @torch.inference_mode()
    def answer() -> Tokens:
        output = model.generate(
            input_ids=ids,
            pixel_values=image,
            attention_mask=mask,
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
        )
        return tuple(t for t in output[0, ids.shape[1] :].tolist() if t not in end)

    return answer


def alternate(contenders: dict[str, Callable[[], Tokens]], runs: int) -> dict[str, Any]:
    """Run every contender once per round; (wall, cpu) medians in ms and the answer of each."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    answers: dict[str, Tokens] = {name: answer() for name, answer in contenders.items()}
    for _ in range(runs):
        for name, answer in contenders.items():
            wall, cpu = time.perf_counter(), time.process_time()
            assert answer() == answers[name], f"{name} is not deterministic"
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    medians = {name: np.median(np.array(t), axis=0) * 1e3 for name, t in times.items()}
    return {
        name: {"wall_ms": float(m[0]), "cpu_ms": float(m[1]), "token_ids": list(answers[name])}
        for name, m in medians.items()
    }


def main() -> None:
    """Command line."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    contenders: dict[str, Callable[[], Tokens]] = {}
    for folder in options.engine:
        engine = Engine.load(
            ModelDirectory.open(folder), options.backend, num_threads=options.threads
        )
        spec = engine.directory.manifest
        pixels = _pixels(options.image, spec.preprocess)
        if not contenders and not options.skip_reference:
            contenders["hugging face, dense"] = hugging_face(
                options.checkpoint, engine, pixels, options.question, options.new_tokens
            )
        for ratio in options.keep_ratio:
            kept = max(1, int(spec.vision.num_patches * ratio))
            name = f"{spec.precision.compute} {engine.backend}, K={kept}"
            contenders[name] = EngineContender(
                engine, pixels, options.question, kept, options.new_tokens
            )
    results = alternate(contenders, options.runs)
    for name, contender in contenders.items():
        if isinstance(contender, EngineContender):
            stages = np.median(np.array(contender.stages), axis=0) * 1e3
            results[name]["stages_ms"] = dict(
                zip(("vision", "prune", "prefill", "decode"), stages.tolist(), strict=True)
            )
    _show(results)
    if options.json:
        record = {
            "machine": {"cpu": platform.processor(), "threads": options.threads},
            "checkpoint": options.checkpoint.name,
            "runs": options.runs,
            "new_tokens": options.new_tokens,
            "results": results,
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def _pixels(image: Path | None, spec: PreprocessSpec) -> Any:
    """The picture as the model sees it, or noise where none is given."""
    if image is None:
        shape = (1, 3, spec.size, spec.size)
        return np.random.default_rng(0).normal(size=shape).astype(np.float32)
    picture = cv2.imread(str(image), cv2.IMREAD_COLOR)
    if picture is None:
        raise SystemExit(f"{image} is not an image that can be read")
    preprocess = Preprocessor(spec.size, spec.mean, spec.std, spec.resize)
    return preprocess(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--engine", type=Path, required=True, action="append")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--keep-ratio", type=float, nargs="+", default=[1.0, 0.5, 0.25])
    parser.add_argument("--image", type=Path, help="picture to ask about; noise by default")
    parser.add_argument("--question", default="where is the red box?")
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip-reference", action="store_true", help="no Hugging Face run")
    parser.add_argument("--json", type=Path)
    return parser


def _show(results: dict[str, Any]) -> None:
    first = next(iter(results.values()))
    table = Table("contender", "wall ms", "CPU ms", "speed-up (CPU)", "vision/prune/prefill/decode")
    for name, row in results.items():
        stages = " ".join(f"{v:.1f}" for v in row.get("stages_ms", {}).values())
        ratio = first["cpu_ms"] / row["cpu_ms"]
        table.add_row(name, f"{row['wall_ms']:.1f}", f"{row['cpu_ms']:.1f}", f"{ratio:.2f}", stages)
    Console().print(table)


if __name__ == "__main__":
    main()
