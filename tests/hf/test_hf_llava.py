import copy

import hf_reference as ref
import hf_tiny as tiny
import pytest
import torch

import edge_atp.hf
from edge_atp.errors import ConfigError, InvalidQueryError, MissingSignalError, ShapeError
from edge_atp.hf.hooks.projector import ProjectorCut
from edge_atp.pruning import available, load

QUESTIONS = ["is there a red box?", "what is in front of the forklift, and how many pallets?"]


@pytest.fixture(scope="module")
def model():
    return tiny.llava()


@pytest.fixture(scope="module")
def tower():
    return tiny.clip()


@pytest.fixture
def attach(model, tower):
    def call(*args, **kwargs):
        kwargs.setdefault("text_tower", tower)
        return edge_atp.hf.attach(model, tiny.TOKENIZER, *args, **kwargs)

    yield call
    if "_edge_atp_handle" in model.__dict__:
        edge_atp.hf.detach(model)


def batch(questions=QUESTIONS, images=1):
    inputs = ref.text_inputs(tiny.prompts(questions, images))
    count = images * len(questions) if isinstance(images, int) else sum(images)
    return {**inputs, "pixel_values": tiny.pixels(count)}


def sample_of(inputs, index):
    mask = inputs["attention_mask"][index].bool()
    return {
        "input_ids": inputs["input_ids"][index][mask][None],
        "attention_mask": torch.ones(1, int(mask.sum()), dtype=torch.long),
        "pixel_values": inputs["pixel_values"][index][None],
    }


@torch.no_grad()
def encode(model, pixel_values):
    """Consumed features, projected features and eager CLS attention, hooks apart."""
    tower = copy.deepcopy(model.model.vision_tower)
    tower.config._attn_implementation = "eager"
    output = tower(pixel_values, output_hidden_states=True, output_attentions=True)
    features = output.hidden_states[-2][:, 1:]
    attention = output.attentions[-2][:, :, 0, 1:]
    return features, model.model.multi_modal_projector(features), attention, output


@pytest.mark.parametrize("name", ["none", "random", "cls_topk", "atp", "divprune"])
def test_keeping_all_is_the_untouched_model(model, attach, name):
    inputs = batch()
    dense = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    attach(name, tiny.PATCHES)
    pruned = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert torch.equal(dense, pruned)


@pytest.mark.parametrize("policy", ["compact", "original"])
def test_pruned_tokens_equal_hand_built_embeddings(model, attach, policy):
    inputs = batch()
    _, projected, attention, _ = encode(model, inputs["pixel_values"])
    handle = attach("cls_topk", 6, position_policy=policy)
    got = ref.generate(model, inputs)
    edge_atp.hf.detach(model)
    for index in range(2):
        kept = attention[index].mean(0).sort(descending=True, stable=True).indices[:6].sort().values
        assert torch.equal(handle.last_selections[index][0].kept_indices, kept)
        embeds, visual = ref.dense_embeds(model, inputs, index, projected[index], tiny.IMAGE_ID)
        keep = ref.keep_mask(visual, kept)
        positions = torch.arange(len(embeds))[keep] if policy == "original" else None
        assert torch.equal(got[index], ref.greedy(model, embeds[keep], positions))


def test_every_method_decodes_from_its_own_selection(model, attach):
    inputs = batch()
    _, projected, _, _ = encode(model, inputs["pixel_values"])
    for name in ("random", "atp", "divprune", "trimtokenator"):
        handle = attach(name, 0.25)
        got = ref.generate(model, inputs)
        edge_atp.hf.detach(model)
        for index in range(2):
            kept = handle.last_selections[index][0].kept_indices
            assert len(kept) == 4
            embeds, visual = ref.dense_embeds(model, inputs, index, projected[index], tiny.IMAGE_ID)
            want = ref.greedy(model, embeds[ref.keep_mask(visual, kept)])
            assert torch.equal(got[index], want), name


@pytest.mark.filterwarnings("ignore::edge_atp.pruning.trimtokenator.TextBlindWarning")
@pytest.mark.parametrize("name", available(site="post_encoder"))
def test_every_interface_method_reaches_the_language_model(model, attach, name):
    """Merged tokens too: what the prompt holds is what the method returned, in its order."""
    inputs = batch()
    _, projected, _, _ = encode(model, inputs["pixel_values"])
    handle = attach(name, 4)
    got = ref.generate(model, inputs)
    edge_atp.hf.detach(model)
    for index in range(2):
        selection = handle.last_selections[index][0]
        rows = projected[index][selection.kept_indices]
        if selection.merged is not None:
            in_features = selection.merged.shape[-1] == tiny.VISION["hidden_size"]
            with torch.no_grad():
                merged = selection.merged
                rows = model.model.multi_modal_projector(merged) if in_features else merged
        ids = inputs["input_ids"][index][inputs["attention_mask"][index].bool()]
        visual = (ids == tiny.IMAGE_ID).nonzero()[:, 0]
        text = model.get_input_embeddings()(ids).detach()
        embeds = torch.cat((text[: visual[0]], rows, text[visual[-1] + 1 :]))
        assert torch.equal(got[index], ref.greedy(model, embeds)), name


@torch.no_grad()
def test_keys_and_attention_layer_are_those_the_method_asks_for(model, attach, monkeypatch):
    inputs = batch(QUESTIONS[:1])
    output = encode(model, inputs["pixel_values"])[3]
    seen = {}
    for name, layer in (("visionzip", 2), ("prumerge", 3)):
        method = type(load(name))
        select = method._select
        monkeypatch.setattr(
            method, "_select", lambda self, s, k, /, f=select: seen.update(s=s) or f(self, s, k)
        )
        attach(name, 4)
        ref.generate(model, inputs, steps=1)
        edge_atp.hf.detach(model)
        block = model.model.vision_tower.encoder.layers[layer]
        normed = block.layer_norm1(output.hidden_states[layer])
        keys = block.self_attn.k_proj(normed)[0, 1:]
        keys = keys.unflatten(-1, (4, 8)).mean(1) if name == "visionzip" else keys
        torch.testing.assert_close(seen["s"].patch_keys, keys)
        want = output.attentions[layer][0, :, 0, 1:]
        torch.testing.assert_close(seen["s"].cls_attention, want)


def test_visionzip_can_keep_cls(model, attach):
    inputs = batch(QUESTIONS[:1])
    output = encode(model, inputs["pixel_values"])[3]
    handle = attach("visionzip", 4, keep_cls=True)
    ref.generate(model, inputs, steps=1)
    selection = handle.last_selections[0][0]
    assert len(selection.kept_indices) == 3
    torch.testing.assert_close(selection.merged[0], output.hidden_states[3][0, 0])


@pytest.mark.parametrize("policy", ["compact", "original"])
def test_chunked_prefill(model, attach, policy):
    inputs = batch(QUESTIONS[1:])
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


def test_atp_scores_follow_the_paper(model, attach, tower):
    inputs = batch()
    _, _, attention, output = encode(model, inputs["pixel_values"])
    clip, tokenizer = tower
    vision = model.model.vision_tower
    joint = clip.visual_projection(vision.post_layernorm(output.last_hidden_state[:, 1:]))
    handle = attach("atp", 6, alpha=0.3)
    ref.generate(model, inputs, steps=1)

    def scaled(values):
        return (values - values.min()) / (values.max() - values.min())

    for index, question in enumerate(QUESTIONS):
        ids = tokenizer(question, add_special_tokens=False)["input_ids"]
        parts = []
        for start in range(0, len(ids), 22):  # the tower reads 24 tokens, two of them special
            window = torch.tensor([[1, *ids[start : start + 22], 2]])
            parts.append(clip.text_projection(clip.text_model(window).pooler_output)[0])
        text = torch.stack(parts).mean(0)
        relevance = torch.cosine_similarity(joint[index], text[None])
        want = 0.3 * scaled(relevance) + 0.7 * scaled(attention[index].mean(0))
        torch.testing.assert_close(handle.last_selections[index][0].scores, want)


def test_value_path_relevance(model, attach, tower):
    inputs = batch(QUESTIONS[:1])
    _, _, _, output = encode(model, inputs["pixel_values"])
    vision, (clip, tokenizer) = model.model.vision_tower, tower
    last = vision.encoder.layers[-1]
    value = last.self_attn.out_proj(
        last.self_attn.v_proj(last.layer_norm1(output.hidden_states[-2]))
    )
    joint = clip.visual_projection(vision.post_layernorm(value[:, 1:]))[0]
    ids = [1, *tokenizer(QUESTIONS[0], add_special_tokens=False)["input_ids"], 2]
    text = clip.text_projection(clip.text_model(torch.tensor([ids])).pooler_output)
    relevance = torch.cosine_similarity(joint, text)
    handle = attach("atp", 6, alpha=1.0, relevance_source="value")
    ref.generate(model, inputs, steps=1)
    want = (relevance - relevance.min()) / (relevance.max() - relevance.min())
    torch.testing.assert_close(handle.last_selections[0][0].scores, want)


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


def test_detach_restores_the_model_bit_for_bit(model, attach):
    inputs = batch()
    before = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    with torch.no_grad():
        logits = model(**inputs).logits
    hooks = ref.hooks_of(model)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    attach("atp", 6)
    assert not torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), before)
    edge_atp.hf.detach(model)
    assert ref.hooks_of(model) == hooks
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), before)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, logits)


def test_the_question_changes_the_selection(model, attach):
    inputs = batch(QUESTIONS[:1])
    handle = attach("atp", 6, alpha=1.0)
    ref.generate(model, inputs, steps=1)
    read = handle.last_selections[0][0].scores
    ref.generate(model, inputs, steps=1, question=QUESTIONS[0])
    assert torch.equal(handle.last_selections[0][0].scores, read)
    handle.set_question("which aisle is blocked?")
    ref.generate(model, inputs, steps=1)
    assert not torch.equal(handle.last_selections[0][0].scores, read)


def test_every_prompt_can_have_its_own_question(model, attach):
    inputs = batch()
    handle = attach("atp", 6, alpha=1.0)
    ref.generate(model, inputs, steps=1)
    read = [row[0].scores for row in handle.last_selections]
    ref.generate(model, inputs, steps=1, question=QUESTIONS)
    again = [row[0].scores for row in handle.last_selections]
    assert all(map(torch.equal, again, read))
    ref.generate(model, inputs, steps=1, question=QUESTIONS[1])
    assert torch.equal(handle.last_selections[1][0].scores, read[1])
    assert not torch.equal(handle.last_selections[0][0].scores, read[0])
    with pytest.raises(InvalidQueryError, match=r"2 questions were given, prompt 2 has none"):
        ref.generate(model, batch([*QUESTIONS, "how many?"]), question=QUESTIONS)


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


def test_a_failed_attach_leaves_nothing_behind(model, monkeypatch):
    hooks = ref.hooks_of(model)

    def broken(*_args):
        raise RuntimeError("no")

    monkeypatch.setattr(ProjectorCut, "install", broken)
    with pytest.raises(RuntimeError, match="no"):
        edge_atp.hf.attach(model, tiny.TOKENIZER, "random", 6)
    assert ref.hooks_of(model) == hooks


def test_errors_name_the_fix(model, attach, tower):
    inputs = batch(QUESTIONS[:1])
    with pytest.raises(ConfigError, match=r"unknown pruning method 'atpp'; choose one of .*atp"):
        attach("atpp")
    with pytest.raises(ConfigError, match=r"unknown VLM family 'lava'; choose one of .*llava"):
        attach("random", family="lava")
    with pytest.raises(ConfigError, match=r"prune_site must be 'post_projector'"):
        attach("divprune", prune_site="pre_projector")
    with pytest.raises(ConfigError, match=r"keep is 1\.5"):
        attach("random", 1.5)
    with pytest.raises(ConfigError, match=r"keep is 0;"):
        attach("random", 0)
    with pytest.raises(MissingSignalError, match=r"attach with text_tower"):
        edge_atp.hf.attach(model, tiny.TOKENIZER, "atp")
    with pytest.raises(ConfigError, match=r"options alpha were given beside a built pruner"):
        attach(load("random"), alpha=0.5)
    attach("atp", 99)
    with pytest.raises(ConfigError, match=r"pruned already"):
        attach("atp")
    with pytest.raises(ShapeError, match=r"keep is 99, but there are 16"):
        ref.generate(model, inputs)
    edge_atp.hf.detach(model)
    with pytest.raises(ConfigError, match=r"no pruning attached"):
        edge_atp.hf.detach(model)
    attach("atp", 6)
    with pytest.raises(ConfigError, match=r"DynamicCache"):
        ref.generate(model, inputs, cache_implementation="static")
    with pytest.raises(InvalidQueryError, match=r"no question text besides its template"):
        ref.generate(model, batch([""]))
    with pytest.raises(ConfigError, match=r"labels are not supported"):
        model(**inputs, labels=inputs["input_ids"])


def test_a_failed_call_leaves_the_model_usable(model, attach):
    inputs = batch(QUESTIONS[:1])
    handle = attach("atp", 6)
    want = ref.generate(model, inputs)
    with pytest.raises(ConfigError, match=r"placeholder tokens"):
        ref.generate(model, {**inputs, "pixel_values": tiny.pixels(2)})
    assert torch.equal(ref.generate(model, inputs), want)
    assert len(handle.last_selections[0]) == 1
