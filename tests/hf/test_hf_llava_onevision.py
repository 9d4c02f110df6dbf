import hf_layers as layers
import hf_reference as ref
import hf_tiny as tiny
import pytest
import torch

import edge_atp.hf
from edge_atp.errors import ConfigError, MissingSignalError

QUESTIONS = ["is there a red box?", "what is in front of the forklift, and how many pallets?"]
SIZES = torch.tensor([[32, 32], [16, 32]])
TILES = [5, 3]


@pytest.fixture(scope="module", params=["anyres_max_9", "anyres_max_1"])
def model(request):
    """With at most one tile's worth of tokens, both images are interpolated."""
    return tiny.llava_onevision(request.param)


@pytest.fixture(scope="module")
def tower():
    return tiny.siglip()


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
def dense_images(model):
    aspect = model.config.vision_aspect_ratio
    output = model.model.get_image_features(pixels(), SIZES, vision_aspect_ratio=aspect)
    return output.pooler_output


def newlines(model, features):
    return (features == model.model.image_newline).all(-1)


def batch(model):
    lengths = [len(features) for features in dense_images(model)]
    text = ref.text_inputs(tiny.prompts(QUESTIONS, tokens=lengths))
    return {**text, "pixel_values": pixels(), "image_sizes": SIZES}


def stays(model, features, kept):
    """Packed rows that stay: the kept, and newlines of rows in which a token stays."""
    newline = newlines(model, features)
    stay = torch.zeros(len(features), dtype=torch.bool)
    stay[(~newline).nonzero()[:, 0][kept]] = True
    start = tiny.PATCHES
    for end in newline.nonzero()[:, 0].tolist():
        stay[end] = bool(stay[start:end].any())
        start = end + 1
    return stay


@pytest.mark.parametrize("name", ["atp", "divprune", "random"])
@pytest.mark.parametrize("per_tile", [True, False])
def test_generation_equals_hand_built_embeddings(model, attach, name, per_tile):
    inputs = batch(model)
    images = dense_images(model)
    handle = attach(name, 4, per_tile=per_tile)
    got = ref.generate(model, inputs)
    edge_atp.hf.detach(model)
    for index in range(2):
        kept = handle.last_selections[index][0].kept_indices
        assert len(kept) == (8 if per_tile else 4)
        embeds, visual = ref.dense_embeds(model, inputs, index, images[index], tiny.IMAGE_ID)
        keep = ~visual
        keep[visual] = stays(model, images[index], kept)
        assert torch.equal(got[index], ref.greedy(model, embeds[keep]))


@torch.no_grad()
def test_signals_are_resampled_like_the_features(model, attach):
    inputs = batch(model)
    handle = attach("atp", 4, alpha=0.0, per_tile=False)
    ref.generate(model, inputs, steps=1)
    edge_atp.hf.detach(model)
    tower = model.model.vision_tower
    layer = tower.encoder.layers[-1]
    states = tower(pixels()[0], output_hidden_states=True).hidden_states[-2]
    module, split = layer.self_attn, (4, 8)
    normed = layer.layer_norm1(states)
    query = module.q_proj(normed).unflatten(-1, split).transpose(1, 2)
    key = module.k_proj(normed).unflatten(-1, split).transpose(1, 2)
    received = (query @ key.transpose(-1, -2) * module.scale).softmax(-1).mean((1, 2))
    stitched = received[1:].view(2, 2, 4, 4).permute(0, 2, 1, 3).reshape(8, 8)
    if model.config.vision_aspect_ratio == "anyres_max_1":
        stitched = torch.nn.functional.interpolate(stitched[None, None], [4, 4], mode="bilinear")
    scores = torch.cat((received[0], stitched.flatten()))
    want = (scores - scores.min()) / (scores.max() - scores.min())
    torch.testing.assert_close(handle.last_selections[0][0].scores, want)


@torch.no_grad()
def test_relevance_goes_through_siglips_pooling_head(model, attach, tower):
    inputs = batch(model)
    handle = attach("atp", 1.0, alpha=1.0)
    ref.generate(model, inputs, steps=1)
    edge_atp.hf.detach(model)
    siglip, tokenizer = tower
    vision = model.model.vision_tower
    last = vision(pixels()[0, :1], output_hidden_states=True).hidden_states[-1][0]
    patches = siglip.vision_model.head(vision.post_layernorm(last)[:, None])
    ids = tokenizer(QUESTIONS[0])["input_ids"]
    padded = torch.tensor([ids + [0] * (16 - len(ids))])
    text = siglip.text_model(input_ids=padded).pooler_output
    relevance = torch.cosine_similarity(patches, text)
    want = (relevance - relevance.min()) / (relevance.max() - relevance.min())
    torch.testing.assert_close(handle.last_selections[0][0].scores[:16], want)


def test_keeping_all_is_the_untouched_model(model, attach):
    inputs = batch(model)
    want = ref.generate(model, inputs)
    attach("atp", 1.0)
    assert torch.equal(ref.generate(model, inputs), want)


def test_spatial_pooling_of_the_base_view_and_the_tiles(model, attach):
    inputs = batch(model)
    images = dense_images(model)
    handle = attach("spatial", 4)
    ref.generate(model, inputs, steps=1)
    edge_atp.hf.detach(model)
    base = images[0][:16].view(4, 4, -1).permute(2, 0, 1)
    pooled = torch.nn.functional.adaptive_avg_pool2d(base, 2).flatten(1).T
    torch.testing.assert_close(handle.last_selections[0][0].merged[:4], pooled)


@pytest.mark.parametrize("per_tile", [True, False])
def test_an_image_of_one_view_has_a_grid_under_any_budget(model, attach, per_tile):
    """Several images in one prompt are not tiled."""
    text = ref.text_inputs(tiny.prompts(QUESTIONS[:1], images=2, tokens=tiny.PATCHES + 1))
    images = tiny.pixels(2)[:, None]
    counts = {"image_sizes": SIZES, "batch_num_images": torch.tensor([2])}
    handle = attach("spatial", 4, per_tile=per_tile, mode="stride")
    ref.generate(model, {**text, "pixel_values": images, **counts}, steps=1)
    edge_atp.hf.detach(model)
    kept = [image.kept_indices.tolist() for image in handle.last_selections[0]]
    assert kept == [[0, 2, 8, 10]] * 2


def test_methods_inside_the_language_model(model, attach):
    inputs = batch(model)
    images = dense_images(model)
    handle = attach("fastv", 5, layer=2)
    got = ref.generate(model, inputs, steps=4)
    edge_atp.hf.detach(model)
    for index in range(2):
        embeds, visual = ref.dense_embeds(model, inputs, index, images[index], tiny.IMAGE_ID)
        kept = handle.last_cuts[2][index]
        cuts = {2: (visual & ~ref.keep_mask(visual, kept)).nonzero()[:, 0]}
        positions = torch.arange(len(embeds))
        want = layers.greedy_with_cuts(model, embeds, positions, cuts, steps=4)
        assert torch.equal(got[index], want)


def test_video_frames(model, attach):
    text = ref.text_inputs(tiny.prompts(QUESTIONS[:1], tokens=3 * 4 + 1, placeholder="<video>"))
    inputs = {**text, "pixel_values_videos": tiny.pixels(3)[None]}
    with torch.no_grad():
        features = model.model.get_video_features(inputs["pixel_values_videos"]).pooler_output[0]
    for per_tile, count in ((True, 6), (False, 2)):
        handle = attach("atp", 2, per_tile=per_tile)
        got = ref.generate(model, inputs)
        edge_atp.hf.detach(model)
        kept = handle.last_selections[0][0].kept_indices
        assert len(kept) == count
        embeds, visual = ref.dense_embeds(model, inputs, 0, features, tiny.VIDEO_ID)
        keep = ref.keep_mask(visual, torch.cat((kept, torch.tensor([12]))))
        assert torch.equal(got[0], ref.greedy(model, embeds[keep]))


def test_detach_restores_the_model_bit_for_bit(model, attach):
    inputs = batch(model)
    with torch.no_grad():
        logits = model(**inputs).logits
    hooks = ref.hooks_of(model)
    attach("atp", 4)
    ref.generate(model, inputs, steps=2)
    edge_atp.hf.detach(model)
    assert ref.hooks_of(model) == hooks
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, logits)


def test_errors_name_the_fix(model, attach):
    with pytest.raises(MissingSignalError, match=r"cls_topk needs cls_attention, .* has no CLS"):
        attach("cls_topk", 4)
    with pytest.raises(ConfigError, match=r"resamples tokens behind the projector"):
        attach("atp", 4, prune_site="pre_projector")
    with pytest.raises(ConfigError, match=r"resamples its tiles after the encoder"):
        attach("tome", 4, num_layers=3)
