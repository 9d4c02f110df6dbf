import hf_layers as layers
import hf_reference as ref
import hf_tiny as tiny
import pytest
import torch

import edge_atp.hf
from edge_atp.errors import ConfigError, MissingSignalError
from edge_atp.hf.qwen2_5_vl import window_order

QUESTIONS = ["is there a red box?", "what is in front of the forklift, and how many pallets?"]
GRIDS = torch.tensor([[1, 8, 8], [1, 8, 12]])
TOKENS = [16, 24]


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl"])
def model(request):
    return getattr(tiny, request.param)()


@pytest.fixture
def attach(model):
    def call(*args, **kwargs):
        kwargs.setdefault("text_tower", "llm")
        return edge_atp.hf.attach(model, tiny.TOKENIZER, *args, **kwargs)

    yield call
    if "_edge_atp_handle" in model.__dict__:
        edge_atp.hf.detach(model)


def batch(indices=(0, 1)):
    questions = [QUESTIONS[i] for i in indices]
    text = ref.text_inputs(tiny.prompts(questions, tokens=[TOKENS[i] for i in indices]))
    generator = torch.Generator().manual_seed(1)
    patches = torch.randn(int(GRIDS.prod(1).sum()), 96, generator=generator)
    parts = patches.split(GRIDS.prod(1).tolist())
    return {
        **text,
        "pixel_values": torch.cat([parts[i] for i in indices]),
        "image_grid_thw": GRIDS[list(indices)],
        "mm_token_type_ids": (text["input_ids"] == tiny.IMAGE_ID).int(),
    }


@torch.no_grad()
def dense(model, inputs, index):
    """Embeddings, visual flags and (3, n) positions of one prompt."""
    features = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    embeds, visual = ref.dense_embeds(
        model, inputs, index, features.pooler_output[index], tiny.IMAGE_ID
    )
    positions, _ = model.model.get_rope_index(
        inputs["input_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
    )
    return embeds, visual, positions[:, index, inputs["attention_mask"][index].bool()]


@pytest.mark.parametrize("name", ["random", "atp", "divprune", "trimtokenator"])
def test_kept_tokens_keep_their_mrope_positions(model, attach, name):
    inputs = batch()
    handle = attach(name, 6)
    got = ref.generate(model, inputs)
    edge_atp.hf.detach(model)
    assert handle.position_policy == "original"
    for index in range(2):
        kept = handle.last_selections[index][0].kept_indices
        embeds, visual, positions = dense(model, inputs, index)
        keep = ref.keep_mask(visual, kept)
        assert torch.equal(got[index], ref.greedy(model, embeds[keep], positions[:, keep]))


@torch.no_grad()
def test_saliency_is_the_attention_received_within_the_image(model, attach):
    inputs = batch()
    handle = attach("atp", 6, alpha=0.0)
    ref.generate(model, inputs, steps=1)
    edge_atp.hf.detach(model)
    visual = model.model.visual
    windows = hasattr(visual, "fullatt_block_indexes")
    layer = visual.blocks[2 if windows else 3]
    seen = {}

    def keep_input(_module, args, kwargs):
        seen["states"], seen["rotary"] = args[0], kwargs["position_embeddings"]

    hook = layer.attn.register_forward_pre_hook(keep_input, with_kwargs=True)
    for index in range(2):
        one = batch([index])
        model.model.get_image_features(one["pixel_values"], one["image_grid_thw"])
        query, key, _ = layer.attn.qkv(seen["states"]).unflatten(1, (3, 4, 8)).unbind(1)
        cos, sin = (part[:, None] for part in seen["rotary"])

        def turn(states, cos=cos, sin=sin):
            first, second = states.chunk(2, -1)
            return states * cos + torch.cat((-second, first), -1) * sin

        query, key = turn(query).transpose(0, 1), turn(key).transpose(0, 1)
        weights = (query @ key.transpose(-1, -2) * 8**-0.5).softmax(-1)
        scores = weights.mean((0, 1)).view(-1, 4).mean(1)
        if windows:
            scores = scores[torch.argsort(window_order(visual, one["image_grid_thw"]))]
        want = (scores - scores.min()) / (scores.max() - scores.min())
        torch.testing.assert_close(handle.last_selections[index][0].scores, want)
    hook.remove()


def test_merger_sees_only_kept_tokens(model, attach):
    seen = []
    attach("random", 6)
    hook = model.model.visual.merger.ln_q.register_forward_pre_hook(
        lambda _module, args: seen.append(tuple(args[0].shape))
    )
    ref.generate(model, batch(), steps=1)
    hook.remove()
    assert seen == [(2 * 6 * 4, 32)]


@pytest.mark.parametrize("name", ["atp", "random"])
def test_keeping_all_is_the_untouched_model(model, attach, name):
    inputs = batch()
    want = ref.generate(model, inputs)
    attach(name, 1.0)
    assert torch.equal(ref.generate(model, inputs), want)


def test_batch_beams_and_forward_agree(model, attach):
    inputs = batch()
    attach("atp", 6)
    together = ref.generate(model, inputs)
    beams = ref.generate(model, inputs, num_beams=2)
    for index in range(2):
        single = batch([index])
        assert torch.equal(ref.generate(model, single)[0], together[index])
        assert torch.equal(ref.generate(model, single, num_beams=2)[0], beams[index])
        with torch.no_grad():
            assert model(**single).logits[0, -1].argmax() == together[index, 0]


def test_second_turn_on_the_same_cache(model, attach):
    inputs = batch()
    handle = attach("random", 6)
    first = model.generate(
        **inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True
    )
    more = tiny.TOKENIZER(["\nUSER: how many? ASSISTANT:"] * 2, return_tensors="pt")["input_ids"]
    ids = torch.cat((first.sequences, more), dim=1)
    mask = torch.ones_like(ids)
    mask[:, : inputs["input_ids"].shape[1]] = inputs["attention_mask"]
    second = model.generate(
        input_ids=ids,
        attention_mask=mask,
        mm_token_type_ids=(ids == tiny.IMAGE_ID).int(),
        past_key_values=first.past_key_values,
        max_new_tokens=4,
        do_sample=False,
    )[:, ids.shape[1] :]
    selections = handle.last_selections
    edge_atp.hf.detach(model)
    for index in range(2):
        embeds, visual, positions = dense(model, inputs, index)
        keep = ref.keep_mask(visual, selections[index][0].kept_indices)
        tail = model.get_input_embeddings()(ids[index, inputs["input_ids"].shape[1] :])
        steps = torch.arange(1, len(tail) + 1) + positions.max()
        whole = torch.cat((positions[:, keep], steps.expand(3, -1)), dim=1)
        embeds = torch.cat((embeds[keep], tail)).detach()
        assert torch.equal(second[index], ref.greedy(model, embeds, whole, steps=4))


@pytest.mark.parametrize(
    ("name", "options"),
    [("fastv", {"layer": 2}), ("pyramiddrop", {"layers": (1, 2), "ratios": (0.5, 0.25)})],
)
def test_methods_inside_the_language_model(model, attach, name, options):
    inputs = batch()
    handle = attach(name, 5, **options)
    got = ref.generate(model, inputs, steps=4)
    edge_atp.hf.detach(model)
    for index in range(2):
        embeds, visual, positions = dense(model, inputs, index)
        cuts = {
            layer: (visual & ~ref.keep_mask(visual, kept[index])).nonzero()[:, 0]
            for layer, kept in handle.last_cuts.items()
        }
        want = layers.greedy_with_cuts(model, embeds, positions, cuts, steps=4)
        assert torch.equal(got[index], want)


def test_video_frames_have_their_own_budget(model, attach):
    generator = torch.Generator().manual_seed(3)
    text = ref.text_inputs(tiny.prompts(QUESTIONS[:1], tokens=48, placeholder="<video>"))
    inputs = {
        **text,
        "pixel_values_videos": torch.randn(3 * 64, 96, generator=generator),
        "video_grid_thw": torch.tensor([[3, 8, 8]]),
        "mm_token_type_ids": (text["input_ids"] == tiny.VIDEO_ID).int() * 2,
    }
    for per_tile, count in ((True, 15), (False, 5)):
        handle = attach("atp", 5, per_tile=per_tile)
        got = ref.generate(model, inputs)
        edge_atp.hf.detach(model)
        kept = handle.last_selections[0][0].kept_indices
        assert len(kept) == count
        with torch.no_grad():
            features = model.model.get_video_features(
                inputs["pixel_values_videos"], inputs["video_grid_thw"]
            ).pooler_output[0]
            positions, _ = model.model.get_rope_index(
                inputs["input_ids"],
                video_grid_thw=inputs["video_grid_thw"],
                mm_token_type_ids=inputs["mm_token_type_ids"],
            )
        embeds, visual = ref.dense_embeds(model, inputs, 0, features, tiny.VIDEO_ID)
        keep = ref.keep_mask(visual, kept)
        want = ref.greedy(model, embeds[keep], positions[:, 0, keep])
        assert torch.equal(got[0], want)


def test_detach_restores_the_model_bit_for_bit(model, attach):
    inputs = batch()
    with torch.no_grad():
        logits = model(**inputs).logits
    hooks = ref.hooks_of(model)
    attach("atp", 6)
    ref.generate(model, inputs, steps=2)
    edge_atp.hf.detach(model)
    assert ref.hooks_of(model) == hooks
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, logits)


def test_errors_name_the_fix(model, attach):
    with pytest.raises(MissingSignalError, match=r"cls_topk needs cls_attention, .* has no CLS"):
        attach("cls_topk", 6)
    with pytest.raises(ConfigError, match=r"scores by the CLS token, which .* does not have"):
        attach("evit", 6)
    with pytest.raises(ConfigError, match=r"position_policy is 'compact'; qwen2.* original"):
        attach("atp", 6, position_policy="compact")
    with pytest.raises(ConfigError, match=r"compares projected tokens"):
        attach("atp", 6, prune_site="pre_projector")
