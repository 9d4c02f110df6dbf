import hf_reference as ref
import hf_tiny as tiny
import pytest
import torch
from torch.nn.functional import normalize

import edge_atp.hf
from edge_atp.errors import ConfigError

QUESTIONS = ["is there a red box?", "what is in front of the forklift, and how many pallets?"]
EVIT = {"layers": (1, 2), "rate": 0.5}
TOME = {"num_layers": 3}


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


def heads(layer, normed):
    """Queries, keys (heads, n, d) of (n, D)."""
    module = layer.self_attn
    return [
        projection(normed).unflatten(-1, (module.num_heads, -1)).transpose(0, 1)
        for projection in (module.q_proj, module.k_proj, module.v_proj)
    ]


def attend(layer, normed, bias=0.0):
    query, key, value = heads(layer, normed)
    weights = (query @ key.transpose(-1, -2) * layer.self_attn.scale + bias).softmax(-1)
    return layer.self_attn.out_proj((weights @ value).transpose(0, 1).flatten(1)), weights, key


@torch.no_grad()
def run_encoder(model, pixels, between):
    """One image through the layers the projector reads; ``between(layer, states, ...)`` cuts."""
    tower = model.model.vision_tower
    states = tower.pre_layrnorm(tower.embeddings(pixels[None]))[0]
    memory = {"place": torch.arange(tiny.PATCHES), "sizes": torch.ones(len(states))}
    for index, layer in enumerate(tower.encoder.layers[:3]):
        bias = torch.log(memory["sizes"]) if memory.get("weigh") else 0.0
        attended, weights, key = attend(layer, layer.layer_norm1(states), bias)
        states = between(index, states + attended, weights, key, memory)
        states = states + layer.mlp(layer.layer_norm2(states))
    return states[1:], memory["place"]


def evit(counts):
    def between(index, states, weights, key, memory):
        if index not in counts:
            return states
        scores = weights[:, 0, 1:].mean(0)
        order = scores.sort(descending=True, stable=True).indices
        kept, dropped = order[: counts[index]].sort().values, order[counts[index] :]
        fused = (scores[dropped, None] * states[1:][dropped]).sum(0)
        place = torch.cat((memory["place"][kept], memory["place"][dropped].max()[None]))
        tokens = torch.cat((states[1:][kept], fused[None]))
        memory["place"] = place.sort().values
        return torch.cat((states[:1], tokens[place.argsort()]))

    return between


def tome(merges):
    def between(index, states, weights, key, memory):
        memory["weigh"] = True
        metric = normalize(key.mean(0), dim=-1)
        score = metric[::2] @ metric[1::2].T
        score[0] = -torch.inf
        best, target = score.max(-1)
        going = best.argsort(descending=True, stable=True)[: merges[index]]
        stay = torch.ones(len(states), dtype=torch.bool)
        sums = states * memory["sizes"][:, None]
        sizes = memory["sizes"].clone()
        for even in going.tolist():
            source, into = 2 * even, 2 * int(target[even]) + 1
            sums[into] += states[source] * memory["sizes"][source]
            sizes[into] += memory["sizes"][source]
            stay[source] = False
        memory["sizes"] = sizes[stay]
        memory["place"] = memory["place"][stay[1:]]
        return (sums / sizes[:, None])[stay]

    return between


@pytest.mark.parametrize(
    ("name", "keep", "options", "between"),
    [
        # ceil(0.5 * 16) = 8, then the fused token counts: ceil(0.5 * 9) = 5.
        ("evit", None, EVIT, evit({1: 8, 2: 5})),
        # 16 -> 6 over two layers at a constant ratio: round(16 * sqrt(6 / 16)) = 10.
        ("evit", 6, EVIT, evit({1: 10, 2: 6})),
        # 10 merges over three layers: 3, 3, 4.
        ("tome", 6, TOME, tome([3, 3, 4])),
        ("tome", None, {"num_layers": 3, "num_merged": 2}, tome([2, 2, 2])),
    ],
)
@pytest.mark.parametrize("policy", ["compact", "original"])
def test_generation_equals_the_encoder_run_by_hand(
    model, attach, name, keep, options, between, policy
):
    inputs = batch()
    handle = attach(name, keep, position_policy=policy, **options)
    got = ref.generate(model, inputs)
    edge_atp.hf.detach(model)
    for index in range(2):
        tokens, place = run_encoder(model, inputs["pixel_values"][index], between)
        assert torch.equal(handle.last_selections[index][0].kept_indices, place)
        with torch.no_grad():
            projected = model.model.multi_modal_projector(tokens)
        ids = inputs["input_ids"][index][inputs["attention_mask"][index].bool()]
        embeds = model.get_input_embeddings()(ids).detach()
        visual = ids == tiny.IMAGE_ID
        keep_rows = ref.keep_mask(visual, place)
        embeds[visual.nonzero()[:, 0][place]] = projected
        positions = torch.arange(len(embeds))[keep_rows] if policy == "original" else None
        assert torch.equal(got[index], ref.greedy(model, embeds[keep_rows], positions))


@pytest.mark.parametrize(("name", "options"), [("evit", EVIT), ("tome", TOME)])
def test_keeping_all_is_the_untouched_model(model, attach, name, options):
    inputs = batch()
    want = ref.generate(model, inputs)
    attach(name, tiny.PATCHES, **options)
    assert torch.equal(ref.generate(model, inputs), want)


@pytest.mark.parametrize(("name", "options"), [("evit", EVIT), ("tome", TOME)])
def test_later_layers_see_fewer_tokens(model, attach, name, options):
    seen = []
    layers = model.model.vision_tower.encoder.layers
    attach(name, 6, **options)
    hook = layers[2].mlp.register_forward_pre_hook(lambda _m, args: seen.append(args[0].shape[1]))
    ref.generate(model, batch(), steps=1)
    hook.remove()
    # CLS, six patches, and EViT's fused token.
    assert seen == [8 if name == "evit" else 7]


@pytest.mark.parametrize(("name", "options"), [("evit", EVIT), ("tome", TOME)])
def test_eager_attention_gives_the_same(name, options):
    tokens = []
    for attention in ("eager", "sdpa"):
        model = tiny.llava(attention)
        edge_atp.hf.attach(model, tiny.TOKENIZER, name, 6, **options)
        tokens.append(ref.generate(model, batch()))
    assert torch.equal(*tokens)


@pytest.mark.parametrize(("name", "options"), [("evit", EVIT), ("tome", TOME)])
def test_detach_restores_the_model_bit_for_bit(model, attach, name, options):
    inputs = batch()
    with torch.no_grad():
        logits = model(**inputs).logits
    hooks = ref.hooks_of(model)
    attach(name, 6, **options)
    ref.generate(model, inputs, steps=2)
    edge_atp.hf.detach(model)
    assert ref.hooks_of(model) == hooks
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, logits)


def test_errors_name_the_fix(attach):
    with pytest.raises(ConfigError, match=r"cuts in layers 5, 11, 17, but the projector reads"):
        attach("evit", 6)
