import hf_reference as ref
import hf_tiny as tiny
import pytest
import torch

import edge_atp.hf

QUESTIONS = ["is there a red box?", "how many pallets are blue?"]
FRAMES, TOKENS = 3, 4  # 4 x 4 patches pooled by two in each direction


@pytest.fixture(scope="module")
def model():
    return tiny.llava_next_video()


@pytest.fixture
def attach(model):
    tower = tiny.clip()

    def call(*args, **kwargs):
        kwargs.setdefault("text_tower", tower)
        return edge_atp.hf.attach(model, tiny.TOKENIZER, *args, **kwargs)

    yield call
    if "_edge_atp_handle" in model.__dict__:
        edge_atp.hf.detach(model)


def batch():
    text = tiny.prompts(QUESTIONS, tokens=FRAMES * TOKENS, placeholder="<video>")
    videos = tiny.pixels(2 * FRAMES).view(2, FRAMES, 3, 16, 16)
    return {**ref.text_inputs(text), "pixel_values_videos": videos}


@pytest.mark.parametrize(("per_tile", "count"), [(True, 6), (False, 2)])
@pytest.mark.parametrize("name", ["atp", "cls_topk", "divprune"])
def test_generation_equals_hand_built_embeddings(model, attach, name, per_tile, count):
    inputs = batch()
    with torch.no_grad():
        features = model.model.get_video_features(inputs["pixel_values_videos"]).pooler_output
    handle = attach(name, 2, per_tile=per_tile)
    got = ref.generate(model, inputs)
    edge_atp.hf.detach(model)
    for index in range(2):
        kept = handle.last_selections[index][0].kept_indices
        assert len(kept) == count
        embeds, visual = ref.dense_embeds(model, inputs, index, features[index], tiny.VIDEO_ID)
        assert torch.equal(got[index], ref.greedy(model, embeds[ref.keep_mask(visual, kept)]))


@torch.no_grad()
def test_saliency_is_pooled_like_the_patches(model, attach):
    inputs = batch()
    handle = attach("cls_topk", 12, per_tile=False)
    ref.generate(model, inputs, steps=1)
    edge_atp.hf.detach(model)
    tower = model.model.vision_tower
    layer, split = tower.encoder.layers[2], (4, 8)
    frames = inputs["pixel_values_videos"][0]
    normed = layer.layer_norm1(tower(frames, output_hidden_states=True).hidden_states[2])
    query = layer.self_attn.q_proj(normed[:, :1]).unflatten(-1, split).transpose(1, 2)
    key = layer.self_attn.k_proj(normed).unflatten(-1, split).transpose(1, 2)
    weights = (query @ key.transpose(-1, -2) * layer.self_attn.scale).softmax(-1)[:, :, 0, 1:]
    grid = weights.mean(1).view(FRAMES, 2, 2, 2, 2)
    want = grid.mean((2, 4)).flatten()
    torch.testing.assert_close(handle.last_selections[0][0].scores, want)


def test_keeping_all_is_the_untouched_model(model, attach):
    inputs = batch()
    want = ref.generate(model, inputs)
    attach("atp", 1.0)
    assert torch.equal(ref.generate(model, inputs), want)


def test_images_work_as_in_llava_next(model, attach):
    sizes = torch.tensor([[16, 32]])
    pixels = tiny.pixels(3)[None]
    with torch.no_grad():
        features = model.model.get_image_features(pixels, sizes).pooler_output[0]
    text = ref.text_inputs(tiny.prompts(QUESTIONS[:1], tokens=len(features)))
    inputs = {**text, "pixel_values": pixels, "image_sizes": sizes}
    handle = attach("random", 0.5)
    got = ref.generate(model, inputs)
    edge_atp.hf.detach(model)
    kept = handle.last_selections[0][0].kept_indices
    newline = (features == model.model.image_newline).all(-1)
    stay = torch.zeros(len(features), dtype=torch.bool)
    # 16 base tokens, then 4 stitched rows of two tiles; tokens count tile after tile.
    order = torch.arange(16).tolist()
    rows = [
        [16 + 16 * tile + 4 * row + col for tile in (0, 1) for col in range(4)] for row in range(4)
    ]
    order += [token for row in rows for token in row]
    stay[~newline] = torch.isin(torch.tensor(order), kept)
    for row, end in enumerate(newline.nonzero()[:, 0].tolist()):
        stay[end] = bool(torch.isin(torch.tensor(rows[row]), kept).any())
    embeds, visual = ref.dense_embeds(model, inputs, 0, features, tiny.IMAGE_ID)
    keep = ~visual
    keep[visual] = stay
    assert torch.equal(got[0], ref.greedy(model, embeds[keep]))
