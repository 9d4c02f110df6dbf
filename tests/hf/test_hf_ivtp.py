import hf_layers as layers
import hf_reference as ref
import hf_tiny as tiny
import pytest
import torch
from test_hf_in_vit import attend

import edge_atp.hf
from edge_atp.errors import ConfigError, MissingSignalError

QUESTIONS = ["is there a red box?", "what is in front of the forklift, and how many pallets?"]
OPTIONS = {"group_size": 2, "encoder_layers": 4, "encoder_kept": 9, "llm_layers": 2}
KEEP = 4


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


def batch(questions=QUESTIONS):
    inputs = ref.text_inputs(tiny.prompts(questions))
    return {**inputs, "pixel_values": tiny.pixels(len(questions))}


def rolled_out(attentions, row):
    rollout = attentions[0]
    for attention in attentions[1:]:
        rollout = (attention + torch.eye(len(attention))) @ rollout
    return rollout[row]


def best(scores, count):
    return scores.sort(descending=True, stable=True).indices[:count].sort().values


@torch.no_grad()
def first_stage(model, pixels, counts):
    """Groups (0, 1) and (2): the projector reads layer 2. Returns tokens, place, CLS rows."""
    tower = model.model.vision_tower
    states = tower.pre_layrnorm(tower.embeddings(pixels[None]))[0]
    place, group = torch.arange(tiny.PATCHES), []
    for index, layer in enumerate(tower.encoder.layers):
        normed = layer.layer_norm1(states)
        attended, weights, _ = attend(layer, normed)
        group.append(weights.mean(0))
        length = layer.self_attn.v_proj(normed).norm(dim=-1)
        states = states + attended
        states = states + layer.mlp(layer.layer_norm2(states))
        if index in counts:
            kept = best((rolled_out(group, 0) * length)[1:], counts[index])
            states, place, group = torch.cat((states[:1], states[1:][kept])), place[kept], []
        if index == 2:
            consumed = states
    return consumed[1:], place, consumed[0], states[0]


def side_mask(count, side):
    """Causal, and nobody but itself sees row ``side``."""
    mask = layers.causal_mask(count)
    mask[..., side] = torch.finfo(torch.float32).min
    mask[..., side, side] = 0.0
    return mask


@torch.no_grad()
def second_stage(model, embeds, visual, positions, side_row, counts):
    """The pseudo-CLS as a real row that nobody sees.

    counts: layer -> visual tokens that enter it; returns the kept of each, in first-layer terms.
    """
    at = int(visual.nonzero()[-1]) + 1
    positions = torch.cat((positions[:at], positions[at : at + 1], positions[at:]))
    states = torch.cat((embeds[:at], side_row[None], embeds[at:]))
    left, flags, kept, group = torch.arange(int(visual.sum())), visual[:at], {}, []
    length = torch.empty(0)
    for layer in range(max(counts) + 1):
        if layer in counts:
            scores = rolled_out(group, at)[:at] * length[:at]
            chosen = best(scores[flags], counts[layer])
            left, group = left[chosen], []
            kept[layer] = left
            stay = torch.ones(len(states), dtype=torch.bool)
            stay[:at] = ~flags
            stay[flags.nonzero()[:, 0][chosen]] = True
            flags = flags[stay[:at]]
            states, positions, at = states[stay], positions[stay], len(flags)
        mask = side_mask(len(states), at)
        weights = layers.attention(model, layer, states, positions, mask).mean(0)
        group.append(weights[: at + 1, : at + 1])
        length = layers.values(model, layer, states).pow(2).sum((0, 2)).sqrt()
        states = layers.run_layer(model, layer, states, positions, mask)
    return kept


@torch.no_grad()
def pseudo_cls(model, tower, question, last_cls, consumed_cls, threshold):
    clip, tokenizer = tower
    joint = clip.visual_projection(model.model.vision_tower.post_layernorm(last_cls))
    encoded = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)
    ids, spans, parts = encoded["input_ids"], encoded["offset_mapping"], []
    for start in range(0, len(ids), 22):
        window = ids[start : start + 22]
        states = clip.text_model(torch.tensor([[1, *window, 2]])).last_hidden_state
        parts.append(clip.text_projection(states[0, 1 : 1 + len(window)]))
    relevance = torch.cosine_similarity(torch.cat(parts), joint[None])
    llm = tiny.TOKENIZER(question, add_special_tokens=False, return_offsets_mapping=True)
    chosen = []
    for token, (start, end) in zip(llm["input_ids"], llm["offset_mapping"], strict=True):
        shared = torch.tensor([max(0, min(end, e) - max(start, s)) for s, e in spans])
        if (relevance * shared).sum() / shared.sum() >= threshold:
            chosen.append(token)
    if not chosen:
        return model.model.multi_modal_projector(consumed_cls)
    return model.get_input_embeddings()(torch.tensor(chosen)).mean(0)


@pytest.mark.parametrize("threshold", [0.0, 0.9])
@pytest.mark.parametrize(
    ("options", "encoder", "language"),
    [
        # 16 -> 9 over two groups at a constant ratio: 12 behind layer 1, 9 behind layer 2.
        (OPTIONS, {1: 12, 2: 9}, {2: 4}),
        # Groups of one layer: 16 -> 9 over three, then 9 -> 4 over three.
        (
            {**OPTIONS, "group_size": 1, "encoder_layers": 3, "llm_layers": 3},
            {0: 13, 1: 11, 2: 9},
            {1: 7, 2: 5, 3: 4},
        ),
    ],
)
def test_both_stages_equal_the_equations(
    model, attach, tower, threshold, options, encoder, language
):
    inputs = batch()
    handle = attach("ivtp", KEEP, threshold=threshold, **options)
    got = ref.generate(model, inputs, steps=5)
    edge_atp.hf.detach(model)
    for index in range(2):
        pixels = inputs["pixel_values"][index]
        tokens, place, consumed_cls, last_cls = first_stage(model, pixels, encoder)
        ids = inputs["input_ids"][index][inputs["attention_mask"][index].bool()]
        embeds = model.get_input_embeddings()(ids).detach()
        visual = ids == tiny.IMAGE_ID
        with torch.no_grad():
            embeds[visual.nonzero()[:, 0][place]] = model.model.multi_modal_projector(tokens)
        keep = ref.keep_mask(visual, place)
        side = pseudo_cls(model, tower, QUESTIONS[index], last_cls, consumed_cls, threshold)
        entering, visual = embeds[keep], visual[keep]
        # The position policy is "original": rows keep the prompt's position ids.
        positions = torch.arange(len(ids))[keep]
        kept = second_stage(model, entering, visual, positions, side, language)
        cuts = {}
        for layer, tokens in kept.items():
            assert torch.equal(handle.last_cuts[layer][index], tokens)
            cuts[layer] = (visual & ~ref.keep_mask(visual, tokens)).nonzero()[:, 0]
        want = layers.greedy_with_cuts(model, entering, positions, cuts)
        assert torch.equal(got[index], want)


def test_cache_holds_what_each_layer_saw(model, attach):
    inputs = batch()
    attach("ivtp", KEEP, **OPTIONS)
    output = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
    text = inputs["input_ids"].shape[1] - tiny.PATCHES + 2
    assert ref.cache_lengths(output.past_key_values) == [text + 9, text + 9, text + 4, text + 4]


def test_batch_and_beams_equal_single(model, attach):
    inputs = batch()
    attach("ivtp", KEEP, **OPTIONS)
    together = ref.generate(model, inputs)
    beams = ref.generate(model, inputs, num_beams=2)
    for index in range(2):
        mask = inputs["attention_mask"][index].bool()
        single = {
            "input_ids": inputs["input_ids"][index][mask][None],
            "pixel_values": inputs["pixel_values"][index][None],
        }
        assert torch.equal(ref.generate(model, single)[0], together[index])
        assert torch.equal(ref.generate(model, single, num_beams=2)[0], beams[index])


def test_prompt_with_two_images(model, attach):
    inputs = ref.text_inputs(tiny.prompts(QUESTIONS[:1], images=2))
    handle = attach("ivtp", KEEP, **OPTIONS)
    ref.generate(model, {**inputs, "pixel_values": tiny.pixels(2)})
    kept = handle.last_cuts[2][0]
    assert len(kept) == 2 * KEEP
    assert torch.equal(kept, kept.unique())


def test_detach_restores_the_model_bit_for_bit(model, attach):
    inputs = batch()
    with torch.no_grad():
        logits = model(**inputs).logits
    hooks = ref.hooks_of(model)
    attach("ivtp", KEEP, **OPTIONS)
    ref.generate(model, inputs, steps=2)
    edge_atp.hf.detach(model)
    assert ref.hooks_of(model) == hooks
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, logits)


def test_errors_name_the_fix(model, attach):
    with pytest.raises(MissingSignalError, match=r"text_tower"):
        edge_atp.hf.attach(model, tiny.TOKENIZER, "ivtp", KEEP, **OPTIONS)
    with pytest.raises(ConfigError, match=r"encoder_layers is 24, but the projector reads layer 2"):
        attach("ivtp", KEEP)
