"""Default options on a LLaVA-1.5 of real depth and patch count, and of small width."""

import hf_reference as ref
import hf_tiny as tiny
import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

import edge_atp.hf

PATCHES = 576
# Visual tokens per decoder layer: (from layer, tokens).
SCHEDULES = {
    "fastv": [(0, 576), (2, 288)],
    "pyramiddrop": [(0, 576), (8, 288), (16, 144), (24, 72)],
    "vtw": [(0, 576), (15, 0)],
    "atp_progressive": [(0, 576), (4, 288), (8, 144), (16, 72)],
    # 8 ViT groups down to 120, then 4 groups of the language model down to 64.
    "ivtp": [(0, 120), (3, 103), (6, 88), (9, 75), (12, 64)],
}


@pytest.fixture(scope="module")
def model():
    vision = {**tiny.VISION, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    vision |= {"num_hidden_layers": 24, "image_size": 336, "patch_size": 14}
    text = {**tiny.TEXT, "hidden_size": 16, "num_hidden_layers": 32, "intermediate_size": 16}
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **vision},
        text_config={"model_type": "llama", **text},
        image_token_id=tiny.IMAGE_ID,
        vision_feature_layer=-2,
    )
    return tiny.randomised(LlavaForConditionalGeneration(config))


@pytest.fixture(scope="module")
def inputs():
    prompt = ref.text_inputs(tiny.prompts(["is there a red box?"], tokens=PATCHES))
    return {**prompt, "pixel_values": tiny.pixels(1, size=336)}


def attach(model, name, keep=None, **options):
    tower = tiny.clip({**tiny.VISION, "hidden_size": 16, "num_attention_heads": 2})
    return edge_atp.hf.attach(model, tiny.TOKENIZER, name, keep, text_tower=tower, **options)


def lengths(model, inputs):
    output = model.generate(**inputs, max_new_tokens=2, return_dict_in_generate=True)
    text = inputs["input_ids"].shape[1] - PATCHES + 1
    return [length - text for length in ref.cache_lengths(output.past_key_values)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_layer_sees_what_the_schedule_says(model, inputs, name):
    attach(model, name)
    try:
        got = lengths(model, inputs)
    finally:
        edge_atp.hf.detach(model)
    want = [0] * 32
    for start, tokens in SCHEDULES[name]:
        want[start:] = [tokens] * (32 - start)
    assert got == want


def test_sparsevlm_adds_recycled_tokens(model, inputs):
    attach(model, "sparsevlm")
    try:
        got = lengths(model, inputs)
    finally:
        edge_atp.hf.detach(model)
    # Of 276 dropped, 83 are recycled into 9; of the 109 then dropped, 33 into 4; and so on.
    assert got[:2] == [576] * 2
    assert got[2:6] == [300 + 9] * 4
    assert got[6:15] == [200 + 4] * 9
    assert got[15:] == [110 + 3] * 17


@pytest.mark.parametrize(("name", "extra"), [("tome", 0), ("evit", 1)])
def test_the_encoder_hands_over_the_budget(model, inputs, name, extra):
    handle = attach(model, name, 64)
    try:
        got = lengths(model, inputs)
    finally:
        edge_atp.hf.detach(model)
    assert got == [64 + extra] * 32
    assert len(handle.last_selections[0][0].kept_indices) == 64 + extra


def test_interface_methods_at_the_published_budget(model, inputs):
    for name in ("atp", "visionzip", "divprune"):
        handle = attach(model, name, 64)
        try:
            got = lengths(model, inputs)
        finally:
            edge_atp.hf.detach(model)
        assert got == [64] * 32, name
        kept = handle.last_selections[0][0].kept_indices
        assert torch.equal(kept, kept.unique())
