"""Prompts for the small LLaVA, and its encoder run apart from any hook."""

import copy

import hf_reference as ref
import hf_tiny as tiny
import torch

QUESTIONS = ["is there a red box?", "what is in front of the forklift, and how many pallets?"]


def batch(questions=QUESTIONS, images=1):
    inputs = ref.text_inputs(tiny.prompts(questions, images))
    count = images * len(questions) if isinstance(images, int) else sum(images)
    return {**inputs, "pixel_values": tiny.pixels(count)}


def sample_of(inputs, index):
    mask = inputs["attention_mask"][index].bool()
    return {
        "input_ids": inputs["input_ids"][index][mask][None],
        "attention_mask": torch.ones(1, int(mask.sum()), dtype=torch.long),
        "pixel_values": inputs["pixel_values"][index][None],
    }


@torch.no_grad()
def encode(model, pixel_values):
    """Consumed features, projected features and eager CLS attention, hooks apart."""
    tower = copy.deepcopy(model.model.vision_tower)
    tower.config._attn_implementation = "eager"
    output = tower(pixel_values, output_hidden_states=True, output_attentions=True)
    features = output.hidden_states[-2][:, 1:]
    attention = output.attentions[-2][:, :, 0, 1:]
    return features, model.model.multi_modal_projector(features), attention, output
