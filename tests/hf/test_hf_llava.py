import hf_reference as ref
import hf_tiny as tiny
import pytest
import torch
from hf_llava import QUESTIONS, batch, encode

import edge_atp.hf
from edge_atp.errors import ConfigError, InvalidQueryError, MissingSignalError, ShapeError
from edge_atp.hf.hooks.projector import ProjectorCut
from edge_atp.pruning import available, load


@pytest.fixture
def model(llava):
    return llava


@pytest.fixture
def tower(clip_tower):
    return clip_tower


@pytest.fixture
def attach(attach_llava):
    return attach_llava


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
        torch.testing.assert_close(torch.as_tensor(seen["s"].patch_keys), keys)
        want = output.attentions[layer][0, :, 0, 1:]
        torch.testing.assert_close(torch.as_tensor(seen["s"].cls_attention), want)


def test_visionzip_can_keep_cls(model, attach):
    inputs = batch(QUESTIONS[:1])
    output = encode(model, inputs["pixel_values"])[3]
    handle = attach("visionzip", 4, keep_cls=True)
    ref.generate(model, inputs, steps=1)
    selection = handle.last_selections[0][0]
    assert len(selection.kept_indices) == 3
    torch.testing.assert_close(selection.merged[0], output.hidden_states[3][0, 0])


def test_features_of_several_layers(tower):
    model = tiny.llava(vision_feature_layer=[-3, -2])
    inputs = batch()
    want = ref.generate(model, inputs)
    edge_atp.hf.attach(model, tiny.TOKENIZER, "atp", 16, text_tower=tower)
    assert torch.equal(ref.generate(model, inputs), want)
    edge_atp.hf.detach(model)
    seen = []
    edge_atp.hf.attach(model, tiny.TOKENIZER, "cls_topk", 6)
    hook = model.model.multi_modal_projector.linear_1.register_forward_pre_hook(
        lambda _module, args: seen.append(args[0].shape)
    )
    ref.generate(model, inputs, steps=1)
    hook.remove()
    assert seen == [(1, 12, 64)]


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


@pytest.mark.parametrize("layer", [-2, 1, 3])
def test_relevance_from_an_earlier_layer(model, attach, tower, layer):
    inputs = batch(QUESTIONS[:1])
    states = encode(model, inputs["pixel_values"])[3].hidden_states
    vision, (clip, tokenizer) = model.model.vision_tower, tower
    joint = clip.visual_projection(vision.post_layernorm(states[layer][:, 1:]))[0]
    ids = [1, *tokenizer(QUESTIONS[0], add_special_tokens=False)["input_ids"], 2]
    text = clip.text_projection(clip.text_model(torch.tensor([ids])).pooler_output)
    relevance = torch.cosine_similarity(joint, text)
    handle = attach("atp", 6, alpha=1.0, embed_layer=layer)
    ref.generate(model, inputs, steps=1)
    want = (relevance - relevance.min()) / (relevance.max() - relevance.min())
    torch.testing.assert_close(handle.last_selections[0][0].scores, want)


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
    other = handle.last_selections[0][0].scores
    assert not torch.equal(other, read)
    ref.generate(model, inputs, steps=1, question=QUESTIONS[0])
    assert torch.equal(handle.last_selections[0][0].scores, read)
    ref.generate(model, inputs, steps=1)
    assert torch.equal(handle.last_selections[0][0].scores, other)
    handle.set_question(None)
    ref.generate(model, inputs, steps=1)
    assert torch.equal(handle.last_selections[0][0].scores, read)


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
    with pytest.raises(ConfigError, match=r"is not laid out like a qwen2_vl model"):
        attach("random", family="qwen2_vl")
    with pytest.raises(ConfigError, match=r"prune_site must be 'post_projector'"):
        attach("divprune", prune_site="pre_projector")
    with pytest.raises(ConfigError, match=r"embed_layer is 0; the vision encoder has \d+ layers"):
        attach("atp", embed_layer=0)
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
