import hf_reference as ref
import hf_tiny as tiny
import pytest
import torch

import edge_atp.hf
from edge_atp.errors import MissingSignalError

QUESTIONS = ["is there a red box?", "what is in front of the forklift, and how many pallets?"]
# Height and width: wide, square, and tall, whose padding on both sides packing cuts off.
SIZES = torch.tensor([[16, 32], [40, 40], [32, 22]])
TILES = [3, 5, 5]
EXACT = "donot_use_mm_for_euclid_dist"


@pytest.fixture(scope="module")
def model():
    return tiny.llava_next()


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


def pixels():
    values = tiny.pixels(sum(TILES)).split(TILES)
    return torch.stack([torch.cat((v, v.new_zeros(5 - len(v), *v.shape[1:]))) for v in values])


@torch.no_grad()
def packed(model):
    """Per image: packed features, and per packed token its number among the image's tokens.

    A token is recognised by its features, which are unique; newline tokens have number -1.
    """
    outputs = model.model.get_image_features(pixels(), SIZES).pooler_output
    tower = model.model.vision_tower(
        torch.cat([p[:n] for p, n in zip(pixels(), TILES, strict=True)]),
        output_hidden_states=True,
    )
    tokens = model.model.multi_modal_projector(tower.hidden_states[-2][:, 1:])
    result = []
    for output, own in zip(outputs, tokens.split(TILES), strict=True):
        distance = torch.cdist(output, own.flatten(0, 1), compute_mode=EXACT)
        number = distance.argmin(1)
        number[
            torch.cdist(output, model.model.image_newline[None], compute_mode=EXACT)[:, 0] < 1e-5
        ] = -1
        assert (distance.min(1).values[number >= 0] < 1e-3).all()
        result.append((output, number))
    return result


def batch(model, images=((0,), (1, 2))):
    lengths = [len(output) for output, _ in packed(model)]
    texts = [
        "<s>USER: "
        + "".join("<image>" * lengths[image] + "\n" for image in own)
        + f"{question} ASSISTANT:"
        for own, question in zip(images, QUESTIONS, strict=True)
    ]
    inputs = tiny.TOKENIZER(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    return {**ref.text_inputs(inputs), "pixel_values": pixels(), "image_sizes": SIZES}


def expected_rows(numbers, kept, tokens=tiny.PATCHES):
    """Packed rows that stay: kept tokens, and newlines of rows in which one stays."""
    stay = torch.isin(numbers, kept)
    start = tokens
    for newline in (numbers == -1).nonzero()[:, 0].tolist():
        stay[newline] = bool(stay[start:newline].any())
        start = newline + 1
    return stay


def numbers_kept(numbers, selection):
    """Selections count the image's surviving tokens, tile after tile."""
    return numbers[numbers >= 0].sort().values[selection.kept_indices]


@pytest.mark.parametrize("name", ["cls_topk", "divprune", "atp"])
@pytest.mark.parametrize("per_tile", [True, False])
def test_generation_equals_hand_packed_embeddings(model, attach, name, per_tile):
    images = packed(model)
    inputs = batch(model)
    handle = attach(name, 5, per_tile=per_tile)
    got = ref.generate(model, inputs)
    edge_atp.hf.detach(model)
    assert [len(row) for row in handle.last_selections] == [1, 2]
    for index, own in enumerate([(0,), (1, 2)]):
        features, stay = [], []
        for image, selection in zip(own, handle.last_selections[index], strict=True):
            output, numbers = images[image]
            kept = numbers_kept(numbers, selection)
            assert len(kept) == (5 * TILES[image] if per_tile else 5)
            features.append(output)
            stay.append(expected_rows(numbers, kept))
        embeds, visual = ref.dense_embeds(model, inputs, index, torch.cat(features), tiny.IMAGE_ID)
        keep = ~visual
        keep[visual] = torch.cat(stay)
        assert torch.equal(got[index], ref.greedy(model, embeds[keep]))


@torch.no_grad()
def test_every_tile_keeps_its_best_by_cls_attention(model, attach):
    inputs = batch(model)
    handle = attach("cls_topk", 3)
    ref.generate(model, inputs, steps=1)
    edge_atp.hf.detach(model)
    tower = model.model.vision_tower
    tiles = torch.cat([p[:n] for p, n in zip(pixels(), TILES, strict=True)])
    layer = tower.encoder.layers[2]
    states = layer.layer_norm1(tower(tiles, output_hidden_states=True).hidden_states[2])
    module, split = layer.self_attn, (4, 8)
    query = module.q_proj(states[:, :1]).unflatten(-1, split).transpose(1, 2)
    key = module.k_proj(states).unflatten(-1, split).transpose(1, 2)
    weights = (query @ key.transpose(-1, -2) * module.scale).softmax(-1)[:, :, 0, 1:].mean(1)
    selections = [selection for row in handle.last_selections for selection in row]
    for (_, numbers), own, selection in zip(
        packed(model), weights.split(TILES), selections, strict=True
    ):
        kept = numbers_kept(numbers, selection)
        survivors = numbers[numbers >= 0]
        for tile, scores in enumerate(own):
            places = survivors[survivors // tiny.PATCHES == tile].sort().values % tiny.PATCHES
            best = places[scores[places].sort(descending=True, stable=True).indices[:3]]
            assert torch.equal(
                kept[kept // tiny.PATCHES == tile] % tiny.PATCHES, best.sort().values
            )


def test_keeping_all_is_the_untouched_model(model, attach):
    inputs = batch(model)
    want = ref.generate(model, inputs)
    attach("cls_topk", 1.0)
    assert torch.equal(ref.generate(model, inputs), want)


def test_spatial_pruning_needs_one_rectangle(model, attach):
    inputs = batch(model)
    attach("spatial", 4)
    ref.generate(model, inputs, steps=1)
    edge_atp.hf.detach(model)
    attach("spatial", 4, per_tile=False)
    with pytest.raises(MissingSignalError, match=r"spatial needs patch_grid"):
        ref.generate(model, inputs, steps=1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tome", {"num_layers": 3}),
        ("fastv", {"layer": 2}),
        ("ivtp", {"group_size": 2, "encoder_layers": 4, "llm_layers": 2}),
    ],
)
def test_methods_inside_the_model_run(model, attach, name, options):
    inputs = batch(model)
    want = ref.generate(model, inputs)
    handle = attach(name, 5, **options)
    got = ref.generate(model, inputs)
    assert got.shape == want.shape
    assert len(handle.last_selections) == 2


def test_detach_restores_the_model_bit_for_bit(model, attach):
    inputs = batch(model)
    with torch.no_grad():
        logits = model(**inputs).logits
    hooks = ref.hooks_of(model)
    attach("atp", 5)
    ref.generate(model, inputs, steps=2)
    edge_atp.hf.detach(model)
    assert ref.hooks_of(model) == hooks
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, logits)
