"""Everything ``generate`` and plain forwards can do keeps working on a pruned LLaVA."""

import hf_reference as ref
import hf_tiny as tiny
import pytest
import torch
import transformers
from hf_llava import QUESTIONS, batch, encode, sample_of

import edge_atp.hf
from edge_atp.errors import ConfigError, InferenceError


@pytest.fixture
def model(llava):
    return llava


@pytest.fixture
def tower(clip_tower):
    return clip_tower


@pytest.fixture
def attach(attach_llava):
    return attach_llava


@pytest.mark.parametrize("policy", ["compact", "original"])
def test_chunked_prefill(model, attach, policy):
    inputs = batch(QUESTIONS[1:])
    alone = ref.generate(model, inputs)
    if not torch.equal(ref.generate(model, inputs, prefill_chunk_size=20), alone):
        version = transformers.__version__
        pytest.skip(f"transformers {version} itself answers otherwise when it prefills in chunks")
    handle = attach("cls_topk", 8, position_policy=policy)
    want = ref.generate(model, inputs)
    assert torch.equal(ref.generate(model, inputs, prefill_chunk_size=20), want)
    edge_atp.hf.detach(model)
    kept = handle.last_selections[0][0].kept_indices
    attach("cls_topk", 1)
    with pytest.raises(ConfigError, match=r"raise prefill_chunk_size"):
        ref.generate(model, inputs, prefill_chunk_size=2)
    edge_atp.hf.detach(model)
    attach("fastv", 5, layer=2)
    with pytest.raises(ConfigError, match=r"prefill_chunk_size is 20; methods inside"):
        ref.generate(model, inputs, prefill_chunk_size=20)
    assert len(kept) == 8


def test_layers_see_no_position_ids_with_gaps(model, attach):
    """Flash attention would take a gap for the boundary of a packed sequence."""
    seen = []
    attach("cls_topk", 6, position_policy="original")
    hook = model.model.language_model.layers[1].self_attn.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    ref.generate(model, batch(), steps=2)
    hook.remove()
    assert seen == [None, None]


def test_half_precision(tower):
    model = tiny.llava().to(torch.bfloat16)
    inputs = batch()
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    want = ref.generate(model, inputs)
    for name, options in (
        ("atp", {}),
        ("visionzip", {}),
        ("fastv", {"layer": 2}),
        ("tome", {"num_layers": 3}),
        ("ivtp", {"group_size": 2, "encoder_layers": 4, "llm_layers": 2}),
    ):
        edge_atp.hf.attach(model, tiny.TOKENIZER, name, 5, text_tower=tower, **options)
        assert ref.generate(model, inputs).shape == want.shape
        edge_atp.hf.detach(model)
    assert torch.equal(ref.generate(model, inputs), want)


def test_batch_equals_single(model, attach):
    inputs = batch()
    attach("atp", 6)
    together = ref.generate(model, inputs)
    for index in range(2):
        assert torch.equal(ref.generate(model, sample_of(inputs, index))[0], together[index])


def test_samples_with_different_numbers_of_images(model, attach):
    inputs = batch(images=[1, 2])
    _, projected, _, _ = encode(model, inputs["pixel_values"])
    handle = attach("random", 0.25)
    got = ref.generate(model, inputs)
    edge_atp.hf.detach(model)
    assert [len(images) for images in handle.last_selections] == [1, 2]
    for index, images in enumerate([[0], [1, 2]]):
        features = projected[images].flatten(0, 1)
        kept = torch.cat(
            [
                selection.kept_indices + tiny.PATCHES * position
                for position, selection in enumerate(handle.last_selections[index])
            ]
        )
        embeds, visual = ref.dense_embeds(model, inputs, index, features, tiny.IMAGE_ID)
        want = ref.greedy(model, embeds[ref.keep_mask(visual, kept)])
        assert torch.equal(got[index], want)


def test_cache_holds_only_kept_tokens(model, attach):
    inputs = batch()
    attach("random", 6)
    output = model.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True)
    want = inputs["input_ids"].shape[1] - (tiny.PATCHES - 6) + 3
    assert ref.cache_lengths(output.past_key_values) == [want] * 4


def test_projector_sees_only_kept_tokens(model, attach):
    seen = []
    handle = attach("random", 6)
    hook = model.model.multi_modal_projector.linear_1.register_forward_pre_hook(
        lambda _module, args: seen.append(args[0].shape)
    )
    ref.generate(model, batch(), steps=1)
    hook.remove()
    assert handle.pruner.name == "random"
    assert seen == [(1, 12, 32)]


@pytest.mark.parametrize("policy", ["compact", "original"])
@pytest.mark.parametrize("whole_conversation", [True, False])
def test_second_turn_on_the_same_cache(model, attach, policy, whole_conversation):
    inputs = batch()
    _, projected, _, _ = encode(model, inputs["pixel_values"])
    handle = attach("cls_topk", 6, position_policy=policy)
    first = model.generate(
        **inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True
    )
    more = tiny.TOKENIZER(["\nUSER: how many? ASSISTANT:"] * 2, return_tensors="pt")["input_ids"]
    ids = torch.cat((first.sequences, more), dim=1)
    mask = torch.cat((inputs["attention_mask"], torch.ones(2, ids.shape[1], dtype=torch.long)), 1)
    mask = mask[:, : ids.shape[1]]
    # The cache misses the last generated token, so it is part of what is new.
    given = ids if whole_conversation else ids[:, first.sequences.shape[1] - 1 :]
    second = model.generate(
        input_ids=given,
        attention_mask=mask,
        past_key_values=first.past_key_values,
        max_new_tokens=4,
        do_sample=False,
    )[:, given.shape[1] :]
    selections = handle.last_selections
    edge_atp.hf.detach(model)
    for index in range(2):
        embeds, visual = ref.dense_embeds(model, inputs, index, projected[index], tiny.IMAGE_ID)
        keep = ref.keep_mask(visual, selections[index][0].kept_indices)
        start = inputs["input_ids"].shape[1]
        tail = model.get_input_embeddings()(ids[index, start:])
        total = torch.arange(len(embeds) + len(tail))
        positions = total[torch.cat((keep, torch.ones(len(tail), dtype=torch.bool)))]
        positions = positions if policy == "original" else None
        want = ref.greedy(model, torch.cat((embeds[keep], tail)), positions, steps=4)
        assert torch.equal(second[index], want)


def test_second_turn_with_a_new_image(model, attach):
    inputs = batch(QUESTIONS[:1])
    handle = attach("random", 6)
    first = model.generate(
        **inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True
    )
    more = ref.text_inputs(tiny.prompts(["and here?"]))["input_ids"]
    ids = torch.cat((first.sequences, more), dim=1)
    pixels = tiny.pixels(1, seed=9)
    second = model.generate(
        input_ids=ids,
        pixel_values=pixels,
        question="and here?",
        past_key_values=first.past_key_values,
        max_new_tokens=4,
        do_sample=False,
    )[0, ids.shape[1] :]
    kept = handle.last_selections[0][0].kept_indices
    edge_atp.hf.detach(model)
    features = torch.cat([encode(model, p)[1][0] for p in (inputs["pixel_values"], pixels)])
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    embeds, visual = ref.dense_embeds(model, whole, 0, features, tiny.IMAGE_ID)
    keep = ref.keep_mask(visual, torch.cat((kept, kept + tiny.PATCHES)))
    assert torch.equal(second, ref.greedy(model, embeds[keep], steps=4))


def continued(model, inputs, cache, ids):
    return model.generate(input_ids=ids, past_key_values=cache, max_new_tokens=2)


def test_caches_that_cannot_be_continued_are_refused(model, attach):
    inputs = batch(QUESTIONS[:1])
    options = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True}
    filled = model.generate(**inputs, **options)
    attach("random", 6)
    with pytest.raises(InferenceError, match=r"filled before attach, cannot be continued"):
        continued(model, inputs, filled.past_key_values, filled.sequences)
    pruned = model.generate(**inputs, **options)
    with pytest.raises(InferenceError, match=r"none of the given ones is new"):
        continued(model, inputs, pruned.past_key_values, pruned.sequences[:, :-1])
    pruned.past_key_values.crop(-2)
    with pytest.raises(InferenceError, match=r"caches that were cropped"):
        continued(model, inputs, pruned.past_key_values, pruned.sequences)


def test_text_only_turns_before_and_after_an_image(model, attach):
    """A conversation that starts without an image."""
    text = ref.text_inputs(tiny.TOKENIZER(["USER: hello ASSISTANT:"], return_tensors="pt"))
    handle = attach("random", 6)
    first = model.generate(**text, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    more = ref.text_inputs(tiny.prompts(QUESTIONS[:1]))["input_ids"]
    ids = torch.cat((first.sequences, more), dim=1)
    pixels = tiny.pixels(1)
    second = model.generate(
        input_ids=ids,
        pixel_values=pixels,
        past_key_values=first.past_key_values,
        max_new_tokens=4,
        do_sample=False,
    )[0, ids.shape[1] :]
    kept = handle.last_selections[0][0].kept_indices
    edge_atp.hf.detach(model)
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    features = encode(model, pixels)[1][0]
    embeds, visual = ref.dense_embeds(model, whole, 0, features, tiny.IMAGE_ID)
    assert torch.equal(second, ref.greedy(model, embeds[ref.keep_mask(visual, kept)], steps=4))


@pytest.mark.parametrize("mode", [{"num_beams": 3}, {"use_cache": False}])
def test_beams_and_no_cache(model, attach, mode):
    inputs = batch()
    _, projected, _, _ = encode(model, inputs["pixel_values"])
    handle = attach("atp", 6)
    got = ref.generate(model, inputs, **mode)
    edge_atp.hf.detach(model)
    for index in range(2):
        kept = handle.last_selections[index][0].kept_indices
        embeds, visual = ref.dense_embeds(model, inputs, index, projected[index], tiny.IMAGE_ID)
        want = model.generate(
            inputs_embeds=embeds[ref.keep_mask(visual, kept)][None],
            max_new_tokens=6,
            do_sample=False,
            **{**mode, "use_cache": True},
        )
        assert torch.equal(got[index], want[0])


def test_forward_without_generate(model, attach):
    inputs = batch(QUESTIONS[:1])
    _, projected, _, _ = encode(model, inputs["pixel_values"])
    handle = attach("atp", 6)
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    edge_atp.hf.detach(model)
    kept = handle.last_selections[0][0].kept_indices
    embeds, visual = ref.dense_embeds(model, inputs, 0, projected[0], tiny.IMAGE_ID)
    with torch.no_grad():
        want = model(inputs_embeds=embeds[ref.keep_mask(visual, kept)][None]).logits[0]
    torch.testing.assert_close(logits, want, atol=1e-3, rtol=1e-4)


def test_eager_attention_gives_the_same(tower):
    inputs = batch()
    tokens = []
    for attention in ("eager", "sdpa"):
        model = tiny.llava(attention)
        edge_atp.hf.attach(model, tiny.TOKENIZER, "atp", 6, text_tower=tower)
        tokens.append(ref.generate(model, inputs))
    assert torch.equal(*tokens)


def test_padding_on_the_right_in_a_plain_forward(model, attach):
    inputs = batch()
    attach("atp", 6)
    lengths = inputs["attention_mask"].sum(1)
    width = inputs["input_ids"].shape[1]
    right = {name: torch.zeros_like(inputs[name]) for name in ("input_ids", "attention_mask")}
    for index, length in enumerate(lengths.tolist()):
        for name, value in right.items():
            value[index, :length] = inputs[name][index, width - length :]
    with torch.no_grad():
        logits = model(**right, pixel_values=inputs["pixel_values"]).logits
        for index, length in enumerate(lengths.tolist()):
            want = model(**sample_of(inputs, index)).logits[0, -1]
            got = logits[index, length - (tiny.PATCHES - 6) - 1]
            torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-4)


def test_a_failed_call_leaves_the_model_usable(model, attach):
    inputs = batch(QUESTIONS[:1])
    handle = attach("atp", 6)
    want = ref.generate(model, inputs)
    with pytest.raises(ConfigError, match=r"placeholder tokens"):
        ref.generate(model, {**inputs, "pixel_values": tiny.pixels(2)})
    assert torch.equal(ref.generate(model, inputs), want)
    assert len(handle.last_selections[0]) == 1
