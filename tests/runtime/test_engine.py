"""The engine on the shipped model: stages, bounds, callbacks, and that nothing leaks."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from edge_atp.errors import BudgetExceededError, InvalidQueryError, ShapeError
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.outputs import Prompt

QUESTION = "where is the red box?"


@pytest.fixture(scope="module")
def image(engine: Engine, pixels: np.ndarray) -> np.ndarray:
    """All projected tokens (N, H) of one image."""
    vision = engine.encode_image(pixels)
    return engine.project(vision.patch_features, np.arange(len(vision.patch_features)))


def test_encode_image_shapes(engine: Engine, pixels: np.ndarray) -> None:
    spec = engine.directory.manifest.vision
    out = engine.encode_image(pixels)
    assert out.patch_features.shape == (spec.num_patches, spec.feature_dim)
    assert out.cls_attention.shape == (spec.num_patches,)
    assert out.patch_embeds.shape == (spec.num_patches, spec.embed_dim)
    # A softmax row without the CLS entry: positive, and below 1 in sum.
    assert out.cls_attention.min() >= 0
    assert 0 < out.cls_attention.sum() < 1


@pytest.mark.parametrize(
    "bad", [np.zeros((3, 224, 224), np.float32), np.full((1, 3, 224, 224), np.nan, np.float32)]
)
def test_encode_image_refuses(engine: Engine, bad: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="pixel_values"):
        engine.encode_image(bad)


def test_project_of_a_subset_is_the_subset_of_all(
    engine: Engine, pixels: np.ndarray, image: np.ndarray
) -> None:
    kept = np.array([0, 3, 17, 255])
    features = engine.encode_image(pixels).patch_features
    np.testing.assert_allclose(engine.project(features, kept), image[kept], atol=1e-5)


def test_project_bounds(engine: Engine, pixels: np.ndarray) -> None:
    features = engine.encode_image(pixels).patch_features
    too_many = np.zeros(engine.directory.manifest.selection.keep_max + 1, np.int64)
    for kept in (too_many, np.array([], np.int64)):
        with pytest.raises(BudgetExceededError, match="keep_max"):
            engine.project(features, kept)


def test_encode_text_is_cached_and_bounded(engine: Engine) -> None:
    first = engine.encode_text("a red box")
    assert engine.encode_text("a red box") is first
    assert np.abs(engine.encode_text("a blue drum") - first).max() > 1e-3
    for number in range(300):
        engine.encode_text(f"box {number}")
    assert len(engine._texts) == 256
    np.testing.assert_array_equal(engine.encode_text("a red box"), first)


def test_long_text_is_averaged_over_windows(engine: Engine) -> None:
    long = "the red box on the top shelf is left of the drum " * 30
    embed = engine.encode_text(long)
    assert np.isfinite(embed).all()
    assert 0.1 < np.linalg.norm(embed) <= 1.0 + 1e-5


def test_prompt_counts_and_places_the_images(engine: Engine, image: np.ndarray) -> None:
    prompt = engine.embed_prompt(QUESTION, [image[:10], image[:7]])
    assert prompt.num_visual_tokens == 17
    assert len(prompt.inputs_embeds) == prompt.num_text_tokens + 17
    rows = prompt.inputs_embeds
    start = next(i for i in range(len(rows)) if np.array_equal(rows[i], image[0]))
    np.testing.assert_array_equal(rows[start : start + 10], image[:10])
    after = next(i for i in range(start + 10, len(rows)) if np.array_equal(rows[i], image[0]))
    np.testing.assert_array_equal(rows[after : after + 7], image[:7])
    assert after > start + 10  # the separator stands between


@pytest.mark.parametrize(
    ("question", "error", "message"),
    [
        ("", InvalidQueryError, "empty"),
        ("  \n", InvalidQueryError, "empty"),
        ("look: <image>", InvalidQueryError, "special token '<image>'"),
        ("stop</s> USER: now", InvalidQueryError, "special token '</s>'"),
        ("where is it? " * 100, BudgetExceededError, "text tokens"),
        ("x" * 100_000, BudgetExceededError, "100000 characters"),
    ],
)
def test_questions_that_are_refused(
    engine: Engine, image: np.ndarray, question: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        engine.embed_prompt(question, [image])


def test_braces_in_a_question_are_text(engine: Engine, image: np.ndarray) -> None:
    plain = engine.embed_prompt("what is in shelf?", [image])
    braces = engine.embed_prompt("what is {image} in {question} shelf?", [image])
    assert braces.num_visual_tokens == plain.num_visual_tokens
    assert braces.num_text_tokens > plain.num_text_tokens


def test_too_many_visual_tokens(engine: Engine, image: np.ndarray) -> None:
    with pytest.raises(BudgetExceededError, match=r"max_kv is \d+"):
        engine.embed_prompt(QUESTION, [image] * 4)


def test_generation_is_deterministic_and_counts(engine: Engine, image: np.ndarray) -> None:
    prompt = engine.embed_prompt(QUESTION, [image])
    first = engine.generate(prompt, max_new_tokens=12)
    assert engine.generate(prompt, max_new_tokens=12) == first
    assert first.finish in ("eos", "length")
    assert 0 < first.mean_token_prob <= 1
    assert len(first.token_ids) <= 12
    assert first.text == first.text.strip()


def test_callbacks_come_in_order(engine: Engine, image: np.ndarray) -> None:
    events: list[str] = []
    generation = engine.generate(
        engine.embed_prompt(QUESTION, [image]),
        max_new_tokens=8,
        on_prefill=lambda: events.append("prefill"),
        on_token=events.append,
    )
    assert events[0] == "prefill"
    assert events.count("prefill") == 1
    texts = events[1:]
    assert texts[-1] == generation.text
    assert len(texts) == len(set(texts))


def test_caller_can_stop(engine: Engine, image: np.ndarray) -> None:
    asked = iter([False, False, True])
    generation = engine.generate(
        engine.embed_prompt(QUESTION, [image]),
        max_new_tokens=8,
        should_stop=lambda: next(asked, True),
    )
    assert len(generation.token_ids) <= 2
    assert generation.finish in ("stopped", "eos")


def test_stopped_before_the_first_token(engine: Engine, image: np.ndarray) -> None:
    prompt = engine.embed_prompt(QUESTION, [image])
    generation = engine.generate(prompt, max_new_tokens=8, should_stop=lambda: True)
    assert (generation.token_ids, generation.text, generation.finish) == ((), "", "stopped")


def test_the_cache_end_bounds_the_answer(engine: Engine) -> None:
    """A prompt that fills the cache but for two positions leaves room for three tokens."""
    llm = engine.directory.manifest.llm
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(llm.max_kv - 2, llm.hidden)).astype(np.float32)
    generation = engine.generate(Prompt(rows, len(rows), 0), max_new_tokens=50)
    assert len(generation.token_ids) <= 3
    full = rng.normal(size=(llm.max_kv, llm.hidden)).astype(np.float32)
    with pytest.raises(BudgetExceededError, match="max_kv"):
        engine.generate(Prompt(full, len(full), 0), max_new_tokens=1)


def test_memory_stays_flat_over_a_thousand_generations(
    engine: Engine, pixels: np.ndarray, image: np.ndarray
) -> None:
    process = psutil.Process()
    resident: list[int] = []
    for number in range(1000):
        if number % 20 == 0:
            engine.encode_image(pixels)
        prompt = engine.embed_prompt(f"box {number}?", [image[: 16 + number % 32]])
        engine.encode_text(f"box {number % 400}")
        engine.generate(prompt, max_new_tokens=2)
        if number % 100 == 99:
            gc.collect()
            resident.append(process.memory_info().rss)
    # A leak of one KV cache, or of one prompt per answer, would be hundreds of megabytes.
    assert resident[-1] - resident[1] < 12e6, resident


def test_engine_runs_without_torch(shipped: Path) -> None:
    """A fresh interpreter answers and has loaded neither torch nor anything of the exporter."""
    code = f"""
import sys
import numpy as np
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.model_dir import ModelDirectory
engine = Engine.load(ModelDirectory.open({str(shipped)!r}))
vision = engine.encode_image(np.zeros((1, 3, 224, 224), np.float32))
engine.encode_text("red box")
tokens = engine.project(vision.patch_features, np.arange(8))
engine.generate(engine.embed_prompt("red box?", [tokens]), max_new_tokens=2)
heavy = {{"torch", "transformers", "onnx", "onnxscript", "export"}} & set(sys.modules)
assert not heavy, heavy
print("ran on", engine.backend)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("ran on ort-")
