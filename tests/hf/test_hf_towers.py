import hf_tiny as tiny
import pytest
import torch
from transformers import CLIPTextModelWithProjection

import edge_atp.hf
from edge_atp.errors import ConfigError
from edge_atp.hf.text.tower import load_tower


def load(choice):
    return load_tower(choice, torch.nn.Embedding(1, 1), None)


@pytest.mark.parametrize("build", [tiny.clip, tiny.siglip])
def test_short_texts_match_the_models_own_text_features(build):
    model, tokenizer = build()
    encoding = load((model, tokenizer)).encode("a red box")
    padding = {"padding": "max_length", "max_length": 16, "padding_side": "right"}
    padding = padding if build is tiny.siglip else {}
    ids = tokenizer("a red box", return_tensors="pt", **padding)["input_ids"]
    with torch.no_grad():
        want = model.get_text_features(input_ids=ids).pooler_output[0]
    torch.testing.assert_close(encoding.embed, want)
    assert len(encoding.tokens) == len(encoding.spans)


def test_a_text_model_alone_embeds_but_cannot_place_patches():
    model, tokenizer = tiny.clip()
    text = CLIPTextModelWithProjection(model.config.text_config)
    tower = load((text.eval(), tokenizer))
    assert tower.encode("a red box").embed.shape == (512,)
    vlm = tiny.llava()
    edge_atp.hf.attach(vlm, tiny.TOKENIZER, "atp", 5, text_tower=(text, tokenizer))
    prompt = tiny.prompts(["is there a red box?"])
    with pytest.raises(ConfigError, match=r"has no visual projection"):
        vlm.generate(input_ids=prompt["input_ids"], pixel_values=tiny.pixels(1), max_new_tokens=1)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (5, r"text_tower is 5; give 'llm', a Hugging Face name"),
        ("open_clip:EVA99/tag", r"open_clip has no model 'EVA99'"),
        ("open_clip:ViT-B-32", r"open_clip:ViT-B-32 names no weights; give .*openai"),
    ],
)
def test_unknown_towers_name_the_choices(choice, message):
    with pytest.raises(ConfigError, match=message):
        load(choice)


def test_slow_tokenizers_are_refused():
    model, _ = tiny.clip()
    with pytest.raises(ConfigError, match=r"no character offsets"):
        load((model, object()))
