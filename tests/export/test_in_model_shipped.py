"""The default model in pieces, through the pipeline, against the original model with hooks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import edge_atp.hf
from edge_atp.cli.main import main
from edge_atp.config import PipelineConfig
from edge_atp.errors import InvalidQueryError
from edge_atp.hf import ModelSettings
from edge_atp.pipeline import Pipeline
from edge_atp.runtime.depth import fit_options
from edge_atp.signals import runnable_methods
from edge_atp.types import Frame, Policy, PruneSpec, Query
from export import recipe
from export.settings import read_settings

YAML = Path(__file__).parents[2] / "models" / "warehouse_tiny.yaml"
PROMPT = "USER: <image>\n{question} ASSISTANT:"
QUESTION = "what is in front of the forklift?"
KEEP = 48


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    given = {"vision_groups": 1, "block_layers": 1, "compare": False}
    settings = read_settings(str(YAML), given)
    out = tmp_path_factory.mktemp("pieces") / "model"
    recipe.export_model(settings, out, progress=lambda step: None)
    return Pipeline.load(PipelineConfig(model=str(out), num_threads=1))


@pytest.fixture(scope="module")
def original() -> tuple[ModelSettings, Any, Any]:
    settings = ModelSettings.from_yaml(YAML)
    return settings, *settings.load(dtype=torch.float32)


def picture(seed: int) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 255, (24, 32, 3)).astype(np.uint8)
    return blocks.repeat(10, 0).repeat(10, 1)


def ask(pipeline: Pipeline, method: str, images: int = 1, **changes: Any) -> Any:
    spec = PruneSpec(Policy.TOKEN_BUDGET, method=method, max_visual_tokens=KEEP)
    query = Query(QUESTION, max_new_tokens=8, prune=spec, **changes)
    return pipeline.answer(query, [Frame(picture(number)) for number in range(images)])


@pytest.mark.parametrize("method", ["ivtp", "evit", "tome", "fastv", "pyramiddrop", "sparsevlm"])
def test_same_kept_tokens_and_answer(
    pipeline: Pipeline, original: tuple[ModelSettings, Any, Any], method: str
) -> None:
    answer = ask(pipeline, method)
    settings, model, processor = original
    pixels = torch.from_numpy(np.asarray(pipeline.preprocess(picture(0))[0]))
    patches = pipeline.grid.num_patches
    text = PROMPT.format(question=QUESTION).replace("<image>", "<image>" * patches)
    inputs = processor.tokenizer(text, return_tensors="pt")
    options = fit_options(method, pipeline.manifest)
    handle = settings.attach(model, processor, method, KEEP, **options)
    try:
        with torch.inference_mode():
            output = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                pixel_values=pixels,
                max_new_tokens=8,
                do_sample=False,
            )
        last = handle.last_selections[0][0].kept_indices.numpy()
        projector = handle._parts.projector
        cuts = {layer: len(kept[0]) for layer, kept in handle.last_cuts.items()}
    finally:
        edge_atp.hf.detach(model)
    # Indices of cuts in the language model count the tokens that entered it.
    entered = projector.selections[0].kept_indices.numpy() if cuts and projector else None
    expected = last if entered is None else entered[last]
    assert np.flatnonzero(answer.masks[0].kept).tolist() == expected.tolist()
    assert {c.layer: c.num_kept for c in answer.cuts if c.part == "language"} == cuts
    tokens = output[0, inputs["input_ids"].shape[1] :].tolist()
    end = processor.tokenizer.eos_token_id
    assert list(answer.token_ids) == (tokens[: tokens.index(end)] if end in tokens else tokens)


def test_times_cuts_and_memory_are_told(pipeline: Pipeline) -> None:
    dense = ask(pipeline, "none")
    answer = ask(pipeline, "ivtp")
    times = answer.times
    stages = (times.preprocess, times.vision_encode, times.prune, times.prefill, times.decode)
    assert min(stages) > 0
    assert sum(stages) + times.queue_wait == pytest.approx(times.total, abs=1e-9)
    vision = [cut.num_kept for cut in answer.cuts if cut.part == "vision"]
    assert vision == sorted(vision, reverse=True)
    assert [cut.part for cut in answer.cuts].count("language") == 1
    assert answer.cuts[-1].num_kept == answer.tokens.visual_kept == KEEP
    assert answer.tokens.visual_total == 256
    assert 0 < answer.kv_bytes < dense.kv_bytes
    assert dense.cuts == ()


def test_two_images_have_their_own_masks(pipeline: Pipeline) -> None:
    for method, left in (("ivtp", 2 * KEEP), ("fastv", 2 * KEEP), ("tome", 2 * KEEP)):
        answer = ask(pipeline, method, images=2)
        kept = [np.flatnonzero(mask.kept) for mask in answer.masks]
        assert sum(map(len, kept)) == answer.tokens.visual_kept == left
        assert kept[0].tolist() != kept[1].tolist()


def test_an_encoding_handed_in_is_encoded_for_the_method(pipeline: Pipeline) -> None:
    frame = Frame(picture(0))
    spec = PruneSpec(Policy.TOKEN_BUDGET, method="evit", max_visual_tokens=KEEP)
    query = Query(QUESTION, max_new_tokens=8, prune=spec)
    shared = pipeline.answer(query, [pipeline.encode(frame)])
    alone = pipeline.answer(query, [frame])
    assert shared.token_ids == alone.token_ids
    assert shared.masks[0].kept.tolist() == alone.masks[0].kept.tolist()
    assert shared.times.vision_encode > 0
    # Of a part of the frame, as a camera's region of interest: that part is encoded again.
    inner = pipeline.encode(Frame(picture(0)[:200, 100:300]))
    region = replace(inner.region, x=inner.region.x + 100)
    part = pipeline.answer(query, [replace(inner, frame=frame, region=region)])
    alone = pipeline.answer(query, [inner.frame])
    assert part.token_ids == alone.token_ids
    assert part.masks[0].kept.tolist() == alone.masks[0].kept.tolist()
    assert part.masks[0].region == region
    assert part.masks[0].frame is frame
    closed = pipeline.answer(
        Query(QUESTION, choices=("a pallet", "a red box"), prune=spec), [frame]
    )
    assert closed.text in ("a pallet", "a red box")


def test_what_cannot_be_asked_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(InvalidQueryError, match="vtw drops every visual token at one layer"):
        ask(pipeline, "vtw")
    answer = pipeline.answer(
        Query(QUESTION, max_new_tokens=2, prune=PruneSpec(method="vtw")), [Frame(picture(0))]
    )
    assert answer.tokens.visual_kept == 0
    with pytest.raises(InvalidQueryError, match="ivtp ranks the visual tokens of one prompt"):
        ask(pipeline, "ivtp", conversation_id="a")
    spec = PruneSpec(Policy.SCORE_MASS, method="evit", score_mass=0.5)
    with pytest.raises(InvalidQueryError, match="SCORE_MASS needs scores"):
        pipeline.answer(Query(QUESTION, prune=spec), [Frame(picture(0))])


def test_the_command_says_what_each_cut_left(
    pipeline: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "scene.png"
    cv2.imwrite(str(image), picture(0))
    words = ["ask", str(image), QUESTION, "--method", "ivtp", "--keep-tokens", "32"]
    model = ["--model", str(pipeline.engine.directory.path)]
    assert main([*words, *model]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "ivtp: kept 32/256 visual tokens" in shown
    assert "left by vision layer 1: " in shown
    assert "language layer 2: 32; KV cache" in shown
    assert main([*words, *model, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["cuts"][-1] == {"part": "language", "layer": 2, "num_kept": 32}
    assert len(told["kept_indices"]) == 32
    # The shipped directory holds both parts in one piece.
    assert main(words) == 2
    assert "--vision-groups 1 --block-layers 1" in capsys.readouterr().err
    assert "ivtp" in runnable_methods(pipeline.manifest)
    sheet = ["compare", str(image), QUESTION, "--methods", "ivtp,vtw", "--keep", "64,32", *model]
    pytest.importorskip("matplotlib", reason="the sheet needs the `evaluation` extra")
    assert main([*sheet, "--out", str(tmp_path / "sheet.png")]) == 0
