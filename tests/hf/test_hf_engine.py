"""The engine and the Hugging Face model are two ways to run the same checkpoint."""

import hashlib
from pathlib import Path

import hf_reference as ref
import numpy as np
import pytest
import torch

import edge_atp.hf
from edge_atp.config import PipelineConfig
from edge_atp.hf import ModelSettings
from edge_atp.pipeline import Pipeline
from edge_atp.types import Frame, Policy, PruneSpec, Query

MODELS = Path(__file__).parents[2] / "models"
WEIGHTS, ENGINE = MODELS / "warehouse_tiny" / "weights", MODELS / "warehouse_tiny" / "onnx"
PROMPT = "USER: <image>\n{question} ASSISTANT:"


@pytest.fixture(scope="module")
def pipeline():
    pipeline = Pipeline.load(PipelineConfig(model=str(ENGINE)))
    digest = hashlib.sha256((WEIGHTS / "model.safetensors").read_bytes()).hexdigest()
    if pipeline.manifest.source.sha256 != digest:
        pytest.skip("models/warehouse_tiny/onnx was exported from other weights; export it again")
    return pipeline


@pytest.fixture(scope="module")
def checkpoint():
    settings = ModelSettings.from_yaml(MODELS / "warehouse_tiny.yaml")
    return settings, *settings.load(dtype=torch.float32)


def picture(seed):
    blocks = np.random.default_rng(seed).integers(0, 255, (24, 32, 3)).astype(np.uint8)
    return blocks.repeat(10, 0).repeat(10, 1)


@pytest.mark.parametrize(
    ("method", "question"),
    [
        ("atp", "is there a red box?"),
        ("atp", "what is in front of the forklift?"),
        ("divprune", "what is in front of the forklift?"),
        ("none", "is there a red box?"),
    ],
)
def test_same_kept_patches_and_tokens(pipeline, checkpoint, method, question):
    settings, model, processor = checkpoint
    image = picture(len(question))
    spec = PruneSpec(Policy.TOKEN_BUDGET, method=method, max_visual_tokens=64)
    answer = pipeline.answer(Query(question, max_new_tokens=8, prune=spec), [Frame(image)])

    pixels = torch.from_numpy(np.asarray(pipeline.preprocess(image)[0]))
    patches = pipeline.grid.num_patches
    text = PROMPT.format(question=question).replace("<image>", "<image>" * patches)
    inputs = {**ref.text_inputs(processor.tokenizer(text, return_tensors="pt"))}
    layer = pipeline.manifest.vision.embed_layer
    handle = settings.attach(model, processor, method, 64, embed_layer=layer)
    try:
        tokens = ref.generate(model, {**inputs, "pixel_values": pixels}, steps=8)[0].tolist()
        kept = handle.last_selections[0][0].kept_indices.numpy()
    finally:
        edge_atp.hf.detach(model)
    assert np.array_equal(np.flatnonzero(answer.masks[0].kept), kept)
    # The engine leaves the end-of-answer token out.
    end = processor.tokenizer.eos_token_id
    tokens = tokens[: tokens.index(end)] if end in tokens else tokens
    assert list(answer.token_ids) == tokens
