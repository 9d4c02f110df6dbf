"""Train warehouse_tiny: scenes, then the stages ``vision``, ``language``, ``joint``, ``robust``.

``python -m models.warehouse_tiny.train --stage all --resume`` runs the whole chain, renders what is
missing and writes the checkpoint; ``--scenes 200 --steps 5`` is a smoke run. Logs are JSON lines
in ``OUT/log.jsonl``.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict, replace
from pathlib import Path

import torch

from models.warehouse_tiny.config import TrainConfig
from models.warehouse_tiny.dataset import ShardError, write_split
from models.warehouse_tiny.evaluate import Evaluator, parse_settings
from models.warehouse_tiny.heads import DenseHeads
from models.warehouse_tiny.model import WarehouseModel, build_model, save_checkpoint
from models.warehouse_tiny.packing import QuestionTokenizer
from models.warehouse_tiny.parallel import launch, rank
from models.warehouse_tiny.run import Run
from models.warehouse_tiny.scenes import SceneStore
from models.warehouse_tiny.stage_language import LanguageStage
from models.warehouse_tiny.stage_vision import VisionStage
from models.warehouse_tiny.tokenizer import train_tokenizer

STAGES = ("vision", "language", "joint", "robust")
EVAL_SETTINGS = ["dense", "atp@64", "atp@32", "cls_topk@64", "random@64"]


def run_stage(
    name: str, config: TrainConfig, data: Path, out: Path, resume: bool, minutes: float | None
) -> None:
    """Train one stage in this process (one of several), starting from the stage before it.

    Raises:
        FileNotFoundError: the stage before it has no checkpoint in ``out``.
    """
    tokenizer = QuestionTokenizer(train_tokenizer())
    store = SceneStore(data, "train", config.scenes, verify=rank() == 0)
    model = build_model(config.seed)
    heads = DenseHeads(model.config.vision_width)
    stage = (
        VisionStage(config, store, tokenizer)
        if name == "vision"
        else LanguageStage(name, config, store, tokenizer)
    )
    towers = [model.vision, model.text_tower, model.visual_projection, model.logit_scale, heads]
    language = [model.projector, model.llm]
    trained = {"vision": towers, "language": language}.get(name, towers + language)
    run = Run(out, stage, config.stage(name), model, heads, trained)
    if resume and run.state_path.exists():
        run.resume()
    elif name != STAGES[0]:
        before = STAGES[STAGES.index(name) - 1]
        _start_from(out / f"{before}.pt", model, heads)
    evaluate = None
    if name != "vision" and config.eval_scenes:
        evaluate = _evaluation(model, tokenizer, data, config.eval_scenes)
    run.train(minutes * 60 if minutes else None, evaluate, config.eval_every)


def _start_from(path: Path, model: WarehouseModel, heads: DenseHeads) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path}: train the stage before this one first")
    state = torch.load(path, map_location="cpu")
    model.load_state_dict(state["model"])
    heads.load_state_dict(state["heads"])


def _evaluation(model: WarehouseModel, tokenizer: QuestionTokenizer, data: Path, scenes: int):  # type: ignore[no-untyped-def]
    """Closure that scores the model on the first validation scenes."""
    evaluator = Evaluator(tokenizer)
    store = SceneStore(data, "val", scenes, verify=False)
    settings = parse_settings(EVAL_SETTINGS)

    def evaluate() -> dict[str, dict[str, float]]:
        picked = (store[seed] for seed in range(scenes))
        return evaluator.run(model, picked, "val", settings)

    return evaluate


def ensure_scenes(data: Path, config: TrainConfig, processes: int) -> None:
    """Render the training and validation scenes that are not there yet."""
    for split, scenes in (("val", config.eval_scenes), ("train", config.scenes)):
        if not scenes:
            continue
        try:
            SceneStore(data, split, scenes, verify=False)
        except ShardError:
            write_split(data, split, scenes, processes)


def export_weights(config: TrainConfig, out: Path, folder: Path) -> None:
    """Write the last finished stage as a checkpoint in fp16."""
    for name in reversed(STAGES):
        if (out / f"{name}.pt").exists():
            model = build_model(config.seed)
            _start_from(out / f"{name}.pt", model, DenseHeads(model.config.vision_width))
            save_checkpoint(model, folder)
            return
    raise FileNotFoundError(f"{out}: no stage checkpoint to write weights from")


def configure(arguments: argparse.Namespace) -> TrainConfig:
    """Defaults with the command line's changes."""
    config = TrainConfig(seed=arguments.seed)
    if arguments.scenes:
        config = replace(config, scenes=arguments.scenes, eval_scenes=min(8, config.eval_scenes))
    for name in STAGES:
        changes = {"steps": arguments.steps, "batch_scenes": arguments.batch}
        changes = {key: value for key, value in changes.items() if value}
        if changes and arguments.stage in (name, "all"):
            config = replace(config, **{name: replace(config.stage(name), **changes)})
    return config


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--resume", action="store_true", help="continue from checkpoints in OUT")
    parser.add_argument("--steps", type=int, help="steps of the chosen stage(s)")
    parser.add_argument("--batch", type=int, help="scenes a step of the chosen stage(s)")
    parser.add_argument("--minutes", type=float, help="time limit of each stage")
    parser.add_argument("--scenes", type=int, help="training scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=Path("out/warehouse_tiny/scenes"))
    parser.add_argument("--out", type=Path, default=Path("out/warehouse_tiny/run"))
    parser.add_argument("--weights", type=Path, help="where to write the checkpoint at the end")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    arguments = parser.parse_args()
    config = configure(arguments)
    print(asdict(config))
    ensure_scenes(arguments.data, config, arguments.processes)
    for name in STAGES if arguments.stage == "all" else (arguments.stage,):
        inputs = (name, config, arguments.data, arguments.out, arguments.resume, arguments.minutes)
        launch(run_stage, inputs, arguments.processes)
    if arguments.weights:
        export_weights(config, arguments.out, arguments.weights)


if __name__ == "__main__":
    main()
