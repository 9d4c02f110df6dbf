"""Cuts inside the encoder and the language model: the engine against the original with hooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_checkpoints import PROMPT, llm_config, save_llava

from edge_atp.errors import ConfigError, MissingSignalError, ShapeError
from edge_atp.hf import attach
from edge_atp.hf.text.transformers_tower import TransformersTower
from edge_atp.pruning import evit, ivtp, sparsevlm, tome, vtw
from edge_atp.pruning.base import InModelPruner
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.in_model import InModelRunner, original_positions
from edge_atp.runtime.model_dir import ModelDirectory
from edge_atp.runtime.outputs import Generation
from export import recipe
from export.settings import ExportSettings

QUESTION = "where is the red box on the shelf?"
NEW_TOKENS = 8
PATCHES = 16
IVTP = {"group_size": 1, "encoder_layers": 2, "encoder_kept": 9, "llm_layers": 2}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    llm = llm_config("llama", num_hidden_layers=4, rope_parameters={"rope_theta": 100.0})
    return save_llava(tmp_path_factory.mktemp("deep"), llm, vision_layers=4)


def export(checkpoint: Path, tower: Path, out: Path, **changes: Any) -> ModelDirectory:
    given = {"max_kv": 96, "block_layers": 1, "vision_groups": 1, "parity_new_tokens": 2}
    settings = ExportSettings(
        checkpoint, text_tower=str(tower), prompt=PROMPT, **{**given, **changes}
    )
    return recipe.export_model(settings, out, progress=lambda step: None)


@pytest.fixture(scope="module")
def engine(deep: Path, text_tower: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(export(deep, text_tower, tmp_path_factory.mktemp("pieces") / "model"))


def run(
    engine: Engine, pixels: np.ndarray, pruner: InModelPruner, num_kept: int | None = None
) -> tuple[Generation, np.ndarray, dict[int, list[int]]]:
    """The answer, the patches behind the encoder, and the visual tokens behind each LLM cut."""
    runner = InModelRunner(engine)
    if pruner.site == "in_encoder" or isinstance(pruner, ivtp.Method):
        image = runner.encode(pixels, pruner, num_kept)
        prompt, place = runner.prompt(pruner, QUESTION, [image]), image.place
    else:
        place = np.arange(PATCHES)
        features = engine.encode_image(pixels).patch_features
        prompt = engine.embed_prompt(QUESTION, [engine.project(features, place)])
    cut = pruner if pruner.site == "in_llm" else None
    answer = engine.generate(prompt, max_new_tokens=NEW_TOKENS, cut=cut, num_kept=num_kept)
    return answer, place, {layer: kept.tolist() for layer, kept in engine.kept_by_layer.items()}


def hugging_face(
    checkpoint: Path,
    tower: Path,
    engine: Engine,
    pixels: np.ndarray,
    pruner: InModelPruner,
    keep: int | None = None,
) -> tuple[tuple[int, ...], list[int], dict[int, list[int]]]:
    """The same three of the original model with the method attached."""
    model = transformers.LlavaForConditionalGeneration.from_pretrained(
        str(checkpoint), dtype=torch.float32
    ).eval()
    fast = transformers.PreTrainedTokenizerFast
    text = transformers.CLIPTextModelWithProjection.from_pretrained(str(tower), dtype=torch.float32)
    weight = load_file(tower / "visual_projection.safetensors")["visual_projection.weight"].float()
    clip = TransformersTower(
        text.eval(), fast(tokenizer_file=str(tower / "tokenizer.json")), weight
    )
    tokenizer = fast(tokenizer_file=str(checkpoint / "tokenizer.json"))
    handle = attach(model, tokenizer, pruner, keep, text_tower=clip)
    tokens = engine.prompt_tokens(QUESTION, 1)
    ids = np.repeat(tokens.ids, np.where(tokens.is_image, PATCHES, 1))[None]
    with torch.inference_mode():
        output = model.generate(
            input_ids=torch.from_numpy(ids),
            pixel_values=torch.from_numpy(pixels),
            attention_mask=torch.ones(ids.shape, dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            question=QUESTION,
        )
    projector = handle._parts.projector  # None where nothing leaves before the language model
    place = projector.selections[0].kept_indices.tolist() if projector else list(range(PATCHES))
    kept = {layer: per_sample[0].tolist() for layer, per_sample in handle.last_cuts.items()}
    return tuple(t for t in output[0, ids.shape[1] :].tolist() if t != 3), place, kept


CASES = {
    "ivtp-groups-of-1": (ivtp.Method(**{**IVTP, "encoder_layers": 3, "llm_layers": 3}), 4),
    "ivtp-groups-of-2": (ivtp.Method(**{**IVTP, "group_size": 2, "encoder_layers": 4}), 4),
    "ivtp-visual-cls": (ivtp.Method(**{**IVTP, "threshold": 0.99}), 3),
    "ivtp-all-words": (ivtp.Method(**{**IVTP, "threshold": -1.0}), 3),
    "evit-rate": (evit.Method(layers=(0, 2), rate=0.5), None),
    "evit-count": (evit.Method(layers=(1, 2)), 5),
    "tome-count": (tome.Method(num_layers=3), 5),
    "tome-each": (tome.Method(num_merged=3, num_layers=2), None),
    "sparsevlm": (sparsevlm.Method(layers=(1, 2, 3), ratios=(0.6, 0.4, 0.2)), None),
    "sparsevlm-count": (sparsevlm.Method(layers=(1, 3), ratios=(0.5, 0.3)), 4),
    "sparsevlm-rank": (sparsevlm.Method(layers=(2,), ratios=(0.2,), adaptive=True), None),
    "vtw": (vtw.Method(layer=2), None),
}


@pytest.mark.parametrize("name", CASES)
def test_same_tokens_and_cuts_as_the_original_model(
    deep: Path, text_tower: Path, engine: Engine, pixels: np.ndarray, name: str
) -> None:
    pruner, keep = CASES[name]
    ours, place, kept = run(engine, pixels, pruner, keep)
    tokens, their_place, their_kept = hugging_face(deep, text_tower, engine, pixels, pruner, keep)
    assert place.tolist() == their_place
    assert kept == their_kept
    assert ours.token_ids == tokens


def test_groups_compute_what_one_graph_does(engine: Engine, pixels: np.ndarray) -> None:
    whole = engine.encode_image(pixels)
    image = InModelRunner(engine).encoder.encode(pixels)
    np.testing.assert_allclose(image.patch_features, whole.patch_features, atol=2e-5)
    assert image.place.tolist() == list(range(PATCHES))
    gates = engine.directory.manifest.parity["gates"]
    assert gates["groups_relative_l2"]["value"] <= 1e-5
    assert gates["cls_embed_relative_l2"]["value"] <= 1e-4
    other = InModelRunner(engine).encoder.encode(pixels[:, :, ::-1].copy())
    assert np.abs(other.patch_features - image.patch_features).max() > 0.1


def test_keeping_all_is_the_identity(engine: Engine, pixels: np.ndarray) -> None:
    features = engine.encode_image(pixels).patch_features
    prompt = engine.embed_prompt(QUESTION, [engine.project(features, np.arange(PATCHES))])
    dense = engine.generate(prompt, max_new_tokens=NEW_TOKENS)
    for pruner in (evit.Method(layers=(0, 1)), ivtp.Method(**{**IVTP, "encoder_kept": PATCHES})):
        answer, place, kept = run(engine, pixels, pruner, PATCHES)
        assert place.tolist() == list(range(PATCHES))
        assert set(map(len, kept.values())) <= {PATCHES}
        assert answer.token_ids == dense.token_ids


def test_blocks_hold_what_they_saw_and_the_memory_is_counted(
    engine: Engine, pixels: np.ndarray
) -> None:
    pruner = ivtp.Method(**{**IVTP, "encoder_layers": 3, "llm_layers": 3})
    runner = InModelRunner(engine)
    prompt = runner.prompt(pruner, QUESTION, [runner.encode(pixels, pruner, 4)])
    engine.generate(prompt, max_new_tokens=1, cut=pruner, num_kept=4)
    text = prompt.num_text_tokens
    # 16 patches, 9 behind the encoder, then a constant ratio down to 4 before layers 1, 2, 3.
    lengths = (text + 9, text + 7, text + 5, text + 4)
    assert engine._kv_cache.lengths == lengths
    llm = engine.directory.manifest.llm
    row = 2 * llm.kv_heads * llm.head_dim * 4
    assert engine.kv_held_bytes == sum(lengths) * row
    assert engine.kv_bytes == llm.layers * llm.max_kv * row
    assert engine.visual_tokens_left == 4


def test_positions_have_gaps_where_patches_are_missing() -> None:
    text, image = [False], [True]
    flags = np.array(text * 2 + image * 2 + text + image * 3 + text * 2)
    places = [np.array([1, 3]), np.array([0, 1, 3])]
    expected = [0, 1, 3, 5, 6, 7, 8, 10, 11, 12]
    assert original_positions(flags, places, 4).tolist() == expected
    whole = [np.arange(2), np.arange(3)]
    assert original_positions(flags[:5], whole[:1], 2).tolist() == list(range(5))


def test_the_answer_ends_where_positions_do(engine: Engine, pixels: np.ndarray) -> None:
    """Position ids run ahead of the rows and must not leave the table of rotary angles."""
    pruner = ivtp.Method(**IVTP)
    runner = InModelRunner(engine)
    image = runner.encode(pixels, pruner, 4)
    prompt = runner.prompt(pruner, QUESTION + " why?" * 4, [image])
    max_kv = engine.directory.manifest.llm.max_kv
    assert prompt.next_position == len(prompt.inputs_embeds) + PATCHES - len(image.place)
    room = max_kv - prompt.next_position + 1
    answer = engine.generate(prompt, max_new_tokens=10_000, cut=pruner, num_kept=4)
    assert len(answer.token_ids) <= room
    if answer.finish == "length":
        assert len(answer.token_ids) == room


def test_a_rollout_over_wide_blocks_equals_one_over_narrow_ones(
    deep: Path, text_tower: Path, engine: Engine, pixels: np.ndarray, tmp_path: Path
) -> None:
    pruner = ivtp.Method(**{**IVTP, "group_size": 2, "encoder_layers": 4})
    wide = Engine.load(
        export(deep, text_tower, tmp_path / "wide", block_layers=2, vision_groups=2, compare=False)
    )
    ours, place, kept = run(wide, pixels, pruner, 4)
    theirs, their_place, their_kept = run(engine, pixels, pruner, 4)
    assert (place.tolist(), kept) == (their_place.tolist(), their_kept)
    assert ours.token_ids == theirs.token_ids
    with pytest.raises(ConfigError, match=r"evit cuts in vision layer 0.*can cut in layers 1, 2"):
        run(wide, pixels, evit.Method(layers=(0,)), 4)


@pytest.mark.parametrize("dialect", ["prim18", "std24"])
def test_standard_operators_cut_alike(
    deep: Path, text_tower: Path, engine: Engine, pixels: np.ndarray, dialect: str, tmp_path: Path
) -> None:
    other = Engine.load(
        export(deep, text_tower, tmp_path / "model", dialect=dialect, compare=False)
    )
    for name in ("ivtp-groups-of-2", "evit-count", "tome-count", "sparsevlm"):
        pruner, keep = CASES[name]
        ours, place, kept = run(other, pixels, pruner, keep)
        expected, their_place, their_kept = run(engine, pixels, pruner, keep)
        assert (place.tolist(), kept) == (their_place.tolist(), their_kept)
        assert ours.token_ids == expected.token_ids


def test_what_does_not_fit_is_refused_with_the_fix(
    deep: Path, text_tower: Path, engine: Engine, pixels: np.ndarray, tmp_path: Path
) -> None:
    runner = InModelRunner(engine)
    with pytest.raises(ConfigError, match=r"encoder_layers is 24, but the projector reads layer 2"):
        runner.check(ivtp.Method(), 4)
    with pytest.raises(ConfigError, match=r"num_layers is 23, but the projector reads layer 2"):
        runner.check(tome.Method(), 8)
    with pytest.raises(ConfigError, match=r"tome cannot go from 16 to 1 tokens in 3 layers"):
        runner.check(tome.Method(num_layers=3), 1)
    with pytest.raises(ShapeError, match=r"pixel_values is \(1, 3, 27, 28\)"):
        runner.encode(pixels[:, :, 1:], evit.Method(layers=(0,)), 4)
    plain = Engine.load(
        export(deep, text_tower, tmp_path / "m", vision_groups=0, block_layers=0, compare=False)
    )
    with pytest.raises(ConfigError, match=r"--out DIR --vision-groups 1 --block-layers 1`"):
        InModelRunner(plain).check(ivtp.Method(**IVTP), 4)
    with pytest.raises(MissingSignalError, match=r"text_tokens; export the model again"):
        plain.encode_text_tokens("red")
