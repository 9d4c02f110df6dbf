"""A second image in a conversation: scores over rows that an earlier turn has cut already."""

import hf_layers as layers
import hf_reference as ref
import hf_tiny as tiny
import pytest
import torch

import edge_atp.hf
from edge_atp.hf.methods import pyramiddrop


@torch.no_grad()
@pytest.mark.parametrize("policy", ["compact", "original"])
def test_scores_of_a_later_turn_stand_where_the_layer_puts_them(monkeypatch, policy):
    """Compact: in layer 2 the new rows are 12 places nearer to the first turn than in layer 1."""
    model = tiny.llava()
    seen, rank = [], pyramiddrop.rank
    monkeypatch.setattr(
        pyramiddrop, "rank", lambda row, k: seen.append(row.mean(0)) or rank(row, k)
    )
    first = ref.text_inputs(tiny.prompts(["is there a red box?"]))
    images = tiny.pixels(2)
    handle = edge_atp.hf.attach(
        model, tiny.TOKENIZER, "pyramiddrop", position_policy=policy, layers=(2,), ratios=(0.25,)
    )
    output = model.generate(
        **first, pixel_values=images[:1], max_new_tokens=2, return_dict_in_generate=True
    )
    kept = handle.last_cuts[2][0]
    more = ref.text_inputs(tiny.prompts(["and here?"]))["input_ids"]
    ids = torch.cat((output.sequences, more), dim=1)
    cache = output.past_key_values
    model.generate(input_ids=ids, pixel_values=images[1:], past_key_values=cache, max_new_tokens=1)
    edge_atp.hf.detach(model)

    features = torch.cat(list(model.model.get_image_features(images).pooler_output))
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    states, visual = ref.dense_embeds(model, whole, 0, features, tiny.IMAGE_ID)
    positions = torch.arange(len(states))
    for layer in range(2):
        states = layers.run_layer(model, layer, states, positions)
    new = visual & (positions >= output.sequences.shape[1])
    stay = ref.keep_mask(visual & ~new, kept)
    positions = positions[stay] if policy == "original" else torch.arange(int(stay.sum()))
    row = layers.attention(model, 2, states[stay], positions)[:, -1, new[stay]].mean(0)
    torch.testing.assert_close(seen[-1], row, rtol=1e-4, atol=1e-6)
