import hf_layers as layers
import hf_reference as ref
import hf_tiny as tiny
import pytest
import torch

import edge_atp.hf
from edge_atp.errors import ConfigError, ShapeError
from edge_atp.hf.methods import fastv, vtw
from edge_atp.pruning.sparsevlm import recycle

QUESTIONS = ["is there a red box?", "what is in front of the forklift, and how many pallets?"]
METHODS = {
    "fastv": ({"layer": 2}, 5),
    "pyramiddrop": ({"layers": (1, 2, 3), "ratios": (0.5, 0.25, 0.125)}, None),
    "vtw": ({"layer": 2}, None),
    "sparsevlm": ({"layers": (1, 2), "ratios": (0.5, 0.25), "recycle_share": 0.0}, None),
    "atp_progressive": ({"layers": (1, 3), "ratios": (0.5, 0.25)}, None),
}


@pytest.fixture(scope="module")
def model():
    return tiny.llava()


@pytest.fixture
def attach(model):
    def call(*args, **kwargs):
        return edge_atp.hf.attach(model, tiny.TOKENIZER, *args, **kwargs)

    yield call
    if "_edge_atp_handle" in model.__dict__:
        edge_atp.hf.detach(model)


def batch(questions=QUESTIONS):
    inputs = ref.text_inputs(tiny.prompts(questions))
    return {**inputs, "pixel_values": tiny.pixels(len(questions))}


@torch.no_grad()
def dense(model, inputs, index):
    projected = model.model.get_image_features(inputs["pixel_values"]).pooler_output
    return ref.dense_embeds(model, inputs, index, projected[index], tiny.IMAGE_ID)


@torch.no_grad()
def entering(model, embeds, cuts, layer, policy="original"):
    """States, positions and prompt rows in front of ``layer``, with the cuts before it done."""
    states, rows = embeds, torch.arange(len(embeds))
    positions = rows
    for index in range(layer):
        if index in cuts:
            keep = ~torch.isin(rows, cuts[index])
            states, rows, positions = states[keep], rows[keep], positions[keep]
            if policy == "compact":
                positions = torch.arange(len(rows))
        states = layers.run_layer(model, index, states, positions)
    return states, positions, rows


def dropped_rows(visual, kept):
    return (visual & ~ref.keep_mask(visual, kept)).nonzero()[:, 0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("policy", ["original", "compact"])
@pytest.mark.parametrize("name", METHODS)
def test_generation_equals_layers_run_by_hand(name, policy, attention):
    model = tiny.llava(attention)
    options, keep = METHODS[name]
    inputs = batch()
    handle = edge_atp.hf.attach(
        model, tiny.TOKENIZER, name, keep, position_policy=policy, **options
    )
    got = ref.generate(model, inputs, steps=5)
    edge_atp.hf.detach(model)
    for index in range(2):
        embeds, visual = dense(model, inputs, index)
        cuts = {
            layer: dropped_rows(visual, kept[index]) for layer, kept in handle.last_cuts.items()
        }
        positions = torch.arange(len(embeds))
        want = layers.greedy_with_cuts(model, embeds, positions, cuts, policy)
        assert torch.equal(got[index], want)


def test_fastv_ranks_by_the_last_row_of_the_layer_before(model, attach):
    inputs = batch()
    handle = attach("fastv", 5, layer=2)
    ref.generate(model, inputs, steps=1)
    edge_atp.hf.detach(model)
    for index in range(2):
        embeds, visual = dense(model, inputs, index)
        states, positions, _ = entering(model, embeds, {}, 1)
        row = layers.attention(model, 1, states, positions)[:, -1, visual].mean(0)
        want = row.sort(descending=True, stable=True).indices[:5].sort().values
        assert torch.equal(handle.last_cuts[2][index], want)
        assert torch.equal(handle.last_selections[index][0].kept_indices, want)


@pytest.mark.parametrize("policy", ["compact", "original"])
def test_pyramiddrop_ranks_by_the_query_of_the_layer_entered(model, attach, policy):
    inputs = batch()
    options, _ = METHODS["pyramiddrop"]
    handle = attach("pyramiddrop", position_policy=policy, **options)
    ref.generate(model, inputs, steps=1)
    edge_atp.hf.detach(model)
    for index in range(2):
        embeds, visual = dense(model, inputs, index)
        left, cuts = torch.arange(tiny.PATCHES), {}
        for layer, count in ((1, 8), (2, 4), (3, 2)):
            states, positions, rows = entering(model, embeds, cuts, layer, policy)
            row = layers.attention(model, layer, states, positions)[:, -1].mean(0)[visual[rows]]
            left = left[row.sort(descending=True, stable=True).indices[:count].sort().values]
            assert torch.equal(handle.last_cuts[layer][index], left)
            cuts[layer] = dropped_rows(visual, left)


@torch.no_grad()
def test_sparsevlm_rates_by_relevant_words(model, attach):
    inputs = batch()
    options, _ = METHODS["sparsevlm"]
    handle = attach("sparsevlm", **options)
    ref.generate(model, inputs, steps=1)
    edge_atp.hf.detach(model)
    for index in range(2):
        embeds, visual = dense(model, inputs, index)
        text = torch.arange(int(visual.nonzero()[-1]) + 1, len(embeds))
        relevance = (embeds[visual] @ embeds[text].T).softmax(-1).mean(0)
        rate = text[relevance > relevance.mean()]
        left, cuts = torch.arange(tiny.PATCHES), {}
        for layer, count in ((1, 8), (2, 4)):
            states, positions, rows = entering(model, embeds, cuts, layer)
            weights = layers.attention(model, layer, states, positions).mean(0)
            scores = weights[torch.isin(rows, rate)].mean(0)[visual[rows]]
            left = left[scores.sort(descending=True, stable=True).indices[:count].sort().values]
            assert torch.equal(handle.last_cuts[layer][index], left)
            cuts[layer] = dropped_rows(visual, left)


@torch.no_grad()
def test_sparsevlm_recycles_dropped_tokens(model, attach):
    """One cut: the recycled tokens stand behind the kept ones, as rows of their own."""
    inputs = batch(QUESTIONS[:1])
    attach("sparsevlm", layers=(2,), ratios=(0.25,), recycle_share=0.9)
    output = model.generate(
        **inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True
    )
    handle = model._edge_atp_handle
    kept = handle.last_cuts[2][0]
    edge_atp.hf.detach(model)
    embeds, visual = dense(model, inputs, 0)
    states, positions, _ = entering(model, embeds, {}, 2)
    # 12 are dropped; the best int(12 * 0.9) + 1 = 11 become 11 // 10 + 1 = 2 tokens.
    text = inputs["input_ids"].shape[1] - tiny.PATCHES
    assert ref.cache_lengths(output.past_key_values) == [text + n + 2 for n in (16, 16, 6, 6)]
    places = visual.nonzero()[:, 0]
    free = places[~torch.isin(torch.arange(tiny.PATCHES), kept)]
    weights = layers.attention(model, 2, states, positions).mean(0)
    after = torch.arange(len(embeds)) > places[-1]
    relevance = (embeds[visual] @ embeds[after].T).softmax(-1).mean(0)
    scores = weights[after][relevance > relevance.mean()].mean(0)
    extra = recycle(states[free], scores[free], 0.9)
    states = states.clone()
    states[free[-2:]] = extra
    keep = torch.ones(len(embeds), dtype=torch.bool)
    keep[free[:-2]] = False
    states, positions = states[keep], positions[keep]
    for layer in (2, 3):
        states = layers.run_layer(model, layer, states, positions)
    token = model.lm_head(model.model.language_model.norm(states)[-1]).argmax()
    assert token == output.sequences[0, inputs["input_ids"].shape[1]]


@torch.no_grad()
def test_atp_progressive_blends_text_and_visual_attention(model, attach):
    inputs = batch()
    options, _ = METHODS["atp_progressive"]
    handle = attach("atp_progressive", alpha=0.3, **options)
    ref.generate(model, inputs, steps=1)
    edge_atp.hf.detach(model)

    def scaled(values):
        return (values - values.min()) / (values.max() - values.min())

    for index in range(2):
        embeds, visual = dense(model, inputs, index)
        last = int(visual.nonzero()[-1])
        left, cuts = torch.arange(tiny.PATCHES), {}
        for layer, count in ((1, 8), (3, 4)):
            states, positions, rows = entering(model, embeds, cuts, layer)
            weights = layers.attention(model, layer, states, positions).mean(0)
            here = visual[rows]
            relevance = weights[rows > last].mean(0)[here]
            block = weights[here][:, here]
            # Under the causal mask token j is seen by n - j of the n tokens.
            saliency = block.sum(0) / torch.arange(len(block), 0, -1)
            scores = 0.3 * scaled(relevance) + 0.7 * scaled(saliency)
            left = left[scores.sort(descending=True, stable=True).indices[:count].sort().values]
            assert torch.equal(handle.last_cuts[layer][index], left)
            cuts[layer] = dropped_rows(visual, left)


@pytest.mark.parametrize(
    ("name", "lengths"),
    [
        ("fastv", (16, 16, 5, 5)),
        ("pyramiddrop", (16, 8, 4, 2)),
        ("vtw", (16, 16, 0, 0)),
        ("sparsevlm", (16, 8, 4, 4)),
        ("atp_progressive", (16, 8, 8, 4)),
    ],
)
def test_cache_layers_hold_what_their_layer_saw(model, attach, name, lengths):
    options, keep = METHODS[name]
    inputs = batch()
    attach(name, keep, **options)
    output = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
    text = inputs["input_ids"].shape[1] - tiny.PATCHES + 2
    assert ref.cache_lengths(output.past_key_values) == [text + count for count in lengths]


@pytest.mark.parametrize("name", METHODS)
def test_batch_equals_single(model, attach, name):
    options, keep = METHODS[name]
    inputs = batch()
    attach(name, keep, **options)
    together = ref.generate(model, inputs, steps=5)
    for index in range(2):
        mask = inputs["attention_mask"][index].bool()
        single = {
            "input_ids": inputs["input_ids"][index][mask][None],
            "pixel_values": inputs["pixel_values"][index][None],
        }
        assert torch.equal(ref.generate(model, single, steps=5)[0], together[index])


def test_keeping_all_is_the_untouched_model(model, attach):
    inputs = batch()
    want = ref.generate(model, inputs)
    attach("fastv", tiny.PATCHES, layer=2)
    assert torch.equal(ref.generate(model, inputs), want)


@pytest.mark.parametrize("policy", ["compact", "original"])
@pytest.mark.parametrize("name", METHODS)
def test_second_turn_on_the_same_cache(model, attach, name, policy):
    options, keep = METHODS[name]
    inputs = batch()
    handle = attach(name, keep, position_policy=policy, **options)
    first = model.generate(
        **inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True
    )
    cuts = handle.last_cuts
    more = tiny.TOKENIZER(["\nUSER: how many? ASSISTANT:"] * 2, return_tensors="pt")["input_ids"]
    ids = torch.cat((first.sequences, more), dim=1)
    mask = torch.ones_like(ids)
    mask[:, : inputs["input_ids"].shape[1]] = inputs["attention_mask"]
    second = model.generate(
        input_ids=ids,
        attention_mask=mask,
        past_key_values=first.past_key_values,
        max_new_tokens=4,
        do_sample=False,
    )[:, ids.shape[1] :]
    edge_atp.hf.detach(model)
    for index in range(2):
        embeds, visual = dense(model, inputs, index)
        rows = {layer: dropped_rows(visual, kept[index]) for layer, kept in cuts.items()}
        tail = model.get_input_embeddings()(ids[index, inputs["input_ids"].shape[1] :])
        whole = torch.cat((embeds, tail)).detach()
        positions = torch.arange(len(whole))
        want = layers.greedy_with_cuts(model, whole, positions, rows, policy, steps=4)
        assert torch.equal(second[index], want)


def test_scores_see_earlier_turns(model, attach, monkeypatch):
    """An image in the second turn: its scores run over the whole conversation."""
    inputs = batch(QUESTIONS[:1])
    seen, rank = [], fastv.rank
    monkeypatch.setattr(fastv, "rank", lambda row, k: seen.append(row.mean(0)) or rank(row, k))
    handle = attach("fastv", 5, layer=2)
    first = model.generate(
        **inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True
    )
    kept_first = handle.last_cuts[2][0]
    more = ref.text_inputs(tiny.prompts(["and here?"]))["input_ids"]
    ids = torch.cat((first.sequences, more), dim=1)
    pixels = tiny.pixels(1, seed=9)
    model.generate(
        input_ids=ids, pixel_values=pixels, past_key_values=first.past_key_values, max_new_tokens=2
    )
    kept_second = handle.last_cuts[2][0]
    edge_atp.hf.detach(model)
    images = torch.cat((inputs["pixel_values"], pixels))
    features = torch.cat(list(model.model.get_image_features(images).pooler_output))
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    embeds, visual = ref.dense_embeds(model, whole, 0, features.detach(), tiny.IMAGE_ID)
    new = visual & (torch.arange(len(visual)) >= first.sequences.shape[1])
    states, positions, _ = entering(model, embeds, {}, 1)
    row = layers.attention(model, 1, states, positions)[:, -1, new].mean(0)
    torch.testing.assert_close(seen[-1], row)
    assert torch.equal(kept_second, row.sort(descending=True).indices[:5].sort().values)
    assert not torch.equal(kept_first, kept_second)


def test_vtw_calibration_measures_every_layer(model):
    inputs = [batch(), batch(QUESTIONS[:1])]
    hooks = ref.hooks_of(model)
    got = vtw.calibrate(model, inputs, layers=(1, 3))
    assert ref.hooks_of(model) == hooks
    for layer in (1, 3):
        values = []
        for prompts in inputs:
            with torch.no_grad():
                logits = model(**prompts).logits[:, -1].double()
            for index, dense_logits in enumerate(logits):
                embeds, visual = dense(model, prompts, index)
                states, positions, _ = entering(model, embeds, {}, layer)
                states, positions = states[~visual], positions[~visual]
                for deeper in range(layer, 4):
                    states = layers.run_layer(model, deeper, states, positions).detach()
                last = model.lm_head(model.model.language_model.norm(states)[-1]).detach().double()
                p = dense_logits.log_softmax(-1)
                values.append((p.exp() * (p - last.log_softmax(-1))).sum())
        torch.testing.assert_close(got[layer], float(torch.stack(values).mean()), rtol=1e-3, atol=0)


def test_vtw_calibration_reads_the_last_token_on_either_side_of_padding(model, monkeypatch):
    left = vtw.calibrate(model, [batch()], layers=(2,))
    monkeypatch.setattr(tiny.TOKENIZER, "padding_side", "right")
    right = vtw.calibrate(model, [batch()], layers=(2,))
    assert right[2] == pytest.approx(left[2], rel=1e-3)


def test_a_prompt_of_embeddings_does_not_tell_its_visual_rows(model, attach):
    embeds, _ = dense(model, batch(), 0)
    attach("fastv", 5, layer=2)
    with pytest.raises(ConfigError, match=r"given as inputs_embeds, .* give input_ids"):
        model(inputs_embeds=embeds[None])


def test_prompts_without_images_are_untouched(model, attach):
    text = tiny.TOKENIZER(["how many pallets are blue?"], return_tensors="pt")
    want = ref.generate(model, ref.text_inputs(text))
    attach("fastv", 5, layer=2)
    assert torch.equal(ref.generate(model, ref.text_inputs(text)), want)


def test_no_layer_is_forced_to_eager_attention(model, attach):
    options, keep = METHODS["pyramiddrop"]
    attach("pyramiddrop", keep, **options)
    ref.generate(model, batch(), steps=1)
    assert model.model.language_model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", METHODS)
def test_detach_restores_the_model_bit_for_bit(model, attach, name):
    options, keep = METHODS[name]
    inputs = batch()
    with torch.no_grad():
        logits = model(**inputs).logits
    hooks = ref.hooks_of(model)
    attach(name, keep, **options)
    ref.generate(model, inputs, steps=2)
    edge_atp.hf.detach(model)
    assert ref.hooks_of(model) == hooks
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, logits)


def test_errors_name_the_fix(model, attach):
    with pytest.raises(ConfigError, match=r"layers 8, 16, 24 do not exist: .* 4 layers, 0 to 3"):
        attach("pyramiddrop")
    with pytest.raises(ConfigError, match=r"a cut before layer 0 is one in front of"):
        attach("pyramiddrop", layers=(0, 1), ratios=(0.5, 0.25))
    with pytest.raises(ConfigError, match=r"vtw drops every visual token .* takes no keep"):
        attach("vtw", 5, layer=2)
    attach("fastv", 99, layer=2)
    with pytest.raises(ShapeError, match=r"keep is 99, .* 16 visual tokens"):
        ref.generate(model, batch())
