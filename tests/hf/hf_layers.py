"""A decoder run layer by layer without hooks or cache, dropping given rows between layers."""

import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv


def causal_mask(count):
    mask = torch.full((count, count), torch.finfo(torch.float32).min)
    return torch.triu(mask, diagonal=1)[None, None]


def run_layer(model, layer, states, positions, mask=None):
    """(n, H) states through one decoder layer; positions (n,) or (3, n)."""
    inner = model.model.language_model
    rotary = inner.rotary_emb(states[None], position_ids=positions[..., None, :])
    output = inner.layers[layer](
        states[None],
        attention_mask=causal_mask(len(states)) if mask is None else mask,
        position_embeddings=rotary,
    )
    return output[0] if not isinstance(output, tuple) else output[0][0]


def attention(model, layer, states, positions, mask=None):
    """(heads, n, n) attention weights of a layer for (n, H) states that enter it."""
    inner = model.model.language_model
    module = inner.layers[layer].self_attn
    normed = inner.layers[layer].input_layernorm(states[None])
    rotary = inner.rotary_emb(states[None], position_ids=positions[..., None, :])
    split = [
        getattr(module, name)(normed).unflatten(-1, (-1, module.head_dim)).transpose(1, 2)
        for name in ("q_proj", "k_proj")
    ]
    query, key = apply_rotary_pos_emb(*split, *rotary)
    key = repeat_kv(key, module.num_key_value_groups)
    mask = causal_mask(len(states)) if mask is None else mask
    logits = query @ key.transpose(-1, -2) * module.scaling + mask
    return logits.softmax(-1)[0]


def values(model, layer, states):
    """(kv_heads, n, d) value vectors of a layer."""
    inner = model.model.language_model
    module = inner.layers[layer].self_attn
    normed = inner.layers[layer].input_layernorm(states)
    return module.v_proj(normed).unflatten(-1, (-1, module.head_dim)).transpose(0, 1)


@torch.no_grad()
def greedy_with_cuts(model, embeds, positions, cuts, policy="original", steps=5):
    """Greedy decoding where ``cuts[layer]`` (rows of the prompt) do not enter layer and above.

    positions: (n,) or (3, n) of the prompt.
    """
    inner, tokens = model.model.language_model, []
    for _ in range(steps):
        states, current, rows = embeds, positions, torch.arange(len(embeds))
        for layer in range(len(inner.layers)):
            if layer in cuts:
                keep = ~torch.isin(rows, cuts[layer])
                states, rows = states[keep], rows[keep]
                current = current[..., keep]
                if policy == "compact":
                    current = torch.arange(len(rows))
            states = run_layer(model, layer, states, current)
        token = model.lm_head(inner.norm(states)[-1]).argmax()
        tokens.append(int(token))
        embeds = torch.cat((embeds, model.get_input_embeddings()(token[None])))
        positions = torch.cat((positions, positions.max(-1, keepdim=True).values + 1), dim=-1)
    return torch.tensor(tokens)
