"""Families whose language model reads a resampler: BLIP-2 (Q-Former), IDEFICS (perceiver)."""

import hf_reference as ref
import hf_tiny as tiny
import pytest
import torch

import edge_atp.hf
from edge_atp.errors import ConfigError, InvalidQueryError, MissingSignalError
from edge_atp.hf.text.open_clip_tower import OpenClipTower

QUESTIONS = ["which aisle is blocked?", "is there a red box?"]


def blip2_batch(indices=(0, 1)):
    texts = ["<image>" * 4 + f"Question: {QUESTIONS[i]} Answer:" for i in indices]
    inputs = tiny.TOKENIZER(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    pixels = tiny.pixels(2, size=56)[list(indices)]
    return {**ref.text_inputs(inputs), "pixel_values": pixels}


def idefics_batch(indices=(0, 1)):
    texts = [f"<s>User: {QUESTIONS[i]} Assistant:" for i in indices]
    inputs = tiny.TOKENIZER(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    ids = inputs["input_ids"]
    return {
        **ref.text_inputs(inputs),
        "pixel_values": tiny.pixels(4).view(2, 2, 3, 16, 16)[list(indices)],
        "image_attention_mask": torch.ones(*ids.shape, 2, dtype=torch.long),
    }


FAMILIES = {
    "blip2": (tiny.blip2, tiny.eva_clip, blip2_batch, 1),
    "idefics": (tiny.idefics, tiny.open_clip_vit, idefics_batch, 2),
}


@pytest.fixture(scope="module", params=FAMILIES)
def setup(request):
    build, tower, batch, images = FAMILIES[request.param]
    return build(), tower(), batch, images


@pytest.fixture
def attach(setup):
    model, tower, _, _ = setup

    def call(*args, **kwargs):
        kwargs.setdefault("text_tower", tower)
        return edge_atp.hf.attach(model, tiny.TOKENIZER, *args, **kwargs)

    yield call
    if "_edge_atp_handle" in model.__dict__:
        edge_atp.hf.detach(model)


def vision_of(model):
    return model.vision_model if hasattr(model, "vision_model") else model.model.vision_model


def resampler_of(model):
    return model.qformer if hasattr(model, "qformer") else model.model.perceiver_resampler


def tokens_of(model, batch, **kwargs):
    output = model.generate(**batch, max_new_tokens=5, do_sample=False, **kwargs)
    return output[:, -5:]


def generate_with_memory(model, batch, kept):
    """Generation where the resampler is handed CLS and the kept patches of every image."""

    def cut(memory):
        rows = [
            torch.cat((image[:1], image[1:][own])) for image, own in zip(memory, kept, strict=True)
        ]
        return torch.stack(rows)

    def hook(_module, args, kwargs):
        if args:
            return (cut(args[0]),), kwargs
        memory = cut(kwargs["encoder_hidden_states"])
        mask = torch.ones(memory.shape[:2], dtype=torch.long)
        return args, {**kwargs, "encoder_hidden_states": memory, "encoder_attention_mask": mask}

    handle = resampler_of(model).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        return tokens_of(model, batch)
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ["random", "cls_topk", "atp"])
def test_generation_equals_a_resampler_fed_by_hand(setup, attach, name):
    model, _, batch, images = setup
    inputs = batch()
    with torch.no_grad():
        dense = model(**inputs).logits
    handle = attach(name, 5)
    got = tokens_of(model, inputs)
    with torch.no_grad():
        assert (model(**inputs).logits - dense).abs().max() > 1e-3
    edge_atp.hf.detach(model)
    assert [len(row) for row in handle.last_selections] == [images, images]
    kept = [s.kept_indices for row in handle.last_selections for s in row]
    assert torch.equal(got, generate_with_memory(model, inputs, kept))


@torch.no_grad()
def test_relevance_uses_the_open_clip_tower(setup, attach):
    model, (clip, tokenizer), batch, images = setup
    inputs = batch()
    handle = attach("atp", 5, alpha=1.0)
    tokens_of(model, inputs)
    edge_atp.hf.detach(model)
    pixels = inputs["pixel_values"].flatten(0, -4)
    last = {}
    hook = (
        vision_of(model)
        .encoder.layers[-1]
        .register_forward_hook(lambda _m, _a, output: last.update(states=output))
    )
    vision_of(model)(pixel_values=pixels)
    hook.remove()
    patches = last["states"][:, 1:]
    if hasattr(clip.visual, "trunk"):
        joint = clip.visual.trunk.forward_head(clip.visual.trunk.norm(patches[0, :1])[None])
        whole = clip.visual.trunk.head(clip.visual.trunk.norm(patches))
        torch.testing.assert_close(joint[0], whole[0, 0])
        joint = whole
    else:
        joint = clip.visual.ln_post(patches) @ clip.visual.proj
    for index, question in enumerate(QUESTIONS):
        text = clip.encode_text(tokenizer([question]))
        for image, selection in enumerate(handle.last_selections[index]):
            relevance = torch.cosine_similarity(joint[index * images + image], text)
            want = (relevance - relevance.min()) / (relevance.max() - relevance.min())
            torch.testing.assert_close(selection.scores, want)


def test_keeping_all_is_the_untouched_model(setup, attach):
    model, _, batch, _ = setup
    inputs = batch()
    want = tokens_of(model, inputs)
    attach("atp", 16)
    assert torch.equal(tokens_of(model, inputs), want)


def test_batch_beams_and_forward_agree(setup, attach):
    model, _, batch, _ = setup
    inputs = batch()
    handle = attach("atp", 5)
    together = tokens_of(model, inputs)
    beams = tokens_of(model, inputs, num_beams=2)
    for index in range(2):
        single = batch([index])
        assert torch.equal(tokens_of(model, single)[0], together[index])
        assert torch.equal(tokens_of(model, single, num_beams=2)[0], beams[index])
        kept = handle.last_selections[0][0].kept_indices
        with torch.no_grad():
            assert model(**single).logits[0, -1].argmax() == together[index, 0]
        assert torch.equal(handle.last_selections[0][0].kept_indices, kept)


def test_evit_inside_the_encoder(setup, attach):
    model, _, batch, _ = setup
    inputs = batch()
    seen = []
    attach("evit", 5, layers=(0, 1))
    hook = resampler_of(model).register_forward_pre_hook(
        lambda _m, args, kwargs: seen.append((args or [kwargs["encoder_hidden_states"]])[0].shape),
        with_kwargs=True,
    )
    tokens_of(model, inputs)
    hook.remove()
    assert [shape[1] for shape in seen] == [1 + 5 + 1]


def test_detach_restores_the_model_bit_for_bit(setup, attach):
    model, _, batch, _ = setup
    inputs = batch()
    want = tokens_of(model, inputs)
    hooks = ref.hooks_of(model)
    attach("atp", 5)
    tokens_of(model, inputs)
    edge_atp.hf.detach(model)
    assert ref.hooks_of(model) == hooks
    assert torch.equal(tokens_of(model, inputs), want)


def test_errors_name_the_fix(setup, attach):
    with pytest.raises(ConfigError, match=r"fastv cuts visual tokens inside the language model"):
        attach("fastv", 5, layer=1)
    with pytest.raises(MissingSignalError, match=r"divprune compares tokens in the language model"):
        attach("divprune", 5)


def test_blip2_attention_cannot_weigh_merged_tokens():
    with pytest.raises(ConfigError, match=r"weighs attention by token size, which Blip2Attention"):
        edge_atp.hf.attach(tiny.blip2(), tiny.TOKENIZER, "tome", 5, num_layers=2)


def test_captions_need_a_question():
    model = tiny.blip2()
    handle = edge_atp.hf.attach(model, tiny.TOKENIZER, "atp", 5, text_tower=tiny.eva_clip())
    with pytest.raises(InvalidQueryError, match=r"pass question=\.\.\."):
        model.generate(tiny.pixels(1, size=56), max_new_tokens=2)
    model.generate(tiny.pixels(1, size=56), max_new_tokens=2, question="a red box")
    assert len(handle.last_selections[0][0].kept_indices) == 5


def test_long_questions_are_read_in_windows(setup):
    _, (clip, tokenizer), _, _ = setup
    long = " ".join(["the left shelf"] * 8 + ["a red box"] * 4)
    encoding = OpenClipTower(clip, tokenizer).encode(long)
    ids = tokenizer.encode(long)
    assert len(encoding.tokens) == len(ids) == 36
    assert [long[start:end] for start, end in encoding.spans[:3]] == ["the", "left", "shelf"]
    with torch.no_grad():
        windows = [[49406, *ids[i : i + 14], 49407] for i in (0, 14, 28)]
        padded = torch.tensor([window + [0] * (16 - len(window)) for window in windows])
        want = clip.encode_text(padded).mean(0)
    torch.testing.assert_close(encoding.embed, want)
