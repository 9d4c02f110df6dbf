"""What the hooks are compared with: decoding written out, without hooks, cache or generate."""

import torch


def text_inputs(batch):
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def generate(model, batch, steps=6, **kwargs):
    """Newly generated ids (B, steps)."""
    output = model.generate(**batch, max_new_tokens=steps, do_sample=False, **kwargs)
    return output[:, batch["input_ids"].shape[1] :]


@torch.no_grad()
def greedy(model, embeds, positions=None, steps=6):
    """Greedy decoding of one sample from its input embeddings (n, H).

    positions: (n,) or (3, n) position ids; 0, 1, ... when left out. New tokens continue after the
    largest.
    """
    inner, tokens = model.model, []
    if positions is None:
        positions = torch.arange(len(embeds))
    for _ in range(steps):
        states = inner.language_model(
            inputs_embeds=embeds[None],
            position_ids=positions[..., None, :],
            attention_mask=torch.ones(1, len(embeds), dtype=torch.long),
            use_cache=False,
        ).last_hidden_state
        token = model.lm_head(states[0, -1]).argmax()
        tokens.append(int(token))
        row = model.get_input_embeddings()(token[None])
        embeds = torch.cat((embeds, row))
        positions = torch.cat((positions, positions.max(-1, keepdim=True).values + 1), dim=-1)
    return torch.tensor(tokens)


@torch.no_grad()
def dense_embeds(model, batch, sample, features, placeholder):
    """(n, H) embeddings of one unpadded prompt with its visual features put in, (n,) is visual."""
    ids = batch["input_ids"][sample][batch["attention_mask"][sample].bool()]
    embeds = model.get_input_embeddings()(ids).clone()
    visual = ids == placeholder
    embeds[visual] = features
    return embeds, visual


def keep_mask(visual, kept):
    """(n,) bool: every text token and the kept visual tokens."""
    keep = ~visual
    keep[visual.nonzero()[:, 0][kept]] = True
    return keep


def hooks_of(model):
    """Everything attach could leave behind on a model."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs")
    names += ("_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called")
    return {
        path: (sorted(module.__dict__), [list(module.__dict__[name].items()) for name in names])
        for path, module in model.named_modules()
    }


def cache_lengths(cache):
    return [layer.get_seq_length() for layer in cache.layers]
