"""Tiny random checkpoints in the layout of real ones: LLaVA, CLIP text tower, BPE tokenizers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

from benchmarks import shapes
from benchmarks.shapes import PROMPT, SPECIAL, Shape, llava_config

__all__ = [
    "PROMPT",
    "QUESTIONS",
    "export_three_encoders",
    "llm_config",
    "save_llava",
    "save_text_tower",
]

VOCAB = 320
SHAPE = Shape(
    48, 3, 3, 28, 7, 64, 3, 4, 2, 96, VOCAB,
    text_width=32, text_layers=2, joint_width=24, vision_ffn=96, text_ffn=64,
)  # fmt: skip
QUESTIONS = ["what is on the left?", "where is the red box on the shelf?", "count: 1 2 3"]


def train_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(QUESTIONS * 4 + ["USER: ASSISTANT:"] * 4, trainer)
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def llm_config(kind: str, **changes: Any) -> Any:
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": SHAPE.llm_width,
        "intermediate_size": SHAPE.llm_ffn,
        "num_hidden_layers": SHAPE.llm_layers,
        "num_attention_heads": SHAPE.llm_heads,
        "num_key_value_heads": SHAPE.llm_kv_heads,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 3,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        # Large weights: logits far enough apart for greedy decoding to be well defined.
        "initializer_range": 0.15,
        **changes,
    }
    return {
        "llama": transformers.LlamaConfig,
        "mistral": transformers.MistralConfig,
        "qwen2": transformers.Qwen2Config,
    }[kind](**shape)


def save_llava(
    folder: Path, llm: Any, *, dtype: torch.dtype = torch.float16, vision_layers: int = 3
) -> Path:
    torch.manual_seed(0)
    shape = replace(SHAPE, vision_layers=vision_layers)
    config = llava_config(shape, llm, initializer_range=0.1, initializer_factor=4.0)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Fresh models have zero biases and unit norms; random ones show a lost or swapped one.
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.generation_config.eos_token_id = 3
    model.generation_config.pad_token_id = 0
    model.to(dtype).save_pretrained(folder)
    shapes.save_processor(folder, train_tokenizer(), shape.image_size)
    return folder


def save_text_tower(folder: Path, *, dtype: torch.dtype = torch.float16) -> Path:
    torch.manual_seed(1)
    shapes.save_text_tower(
        SHAPE, folder, train_tokenizer(), dtype=dtype, max_position_embeddings=16
    )
    return folder


def export_three_encoders(folder: Path) -> Path:
    """A model directory with the whole encoder, one that leaves 7 of 16 patches, and one in pieces
    of a layer, as is the language model."""
    from export.recipe import export_model
    from export.settings import ExportSettings

    settings = ExportSettings(
        save_llava(folder / "llava", llm_config("llama", num_hidden_layers=4), vision_layers=4),
        text_tower=str(save_text_tower(folder / "text_tower")),
        prompt=PROMPT,
        max_kv=96,
        block_layers=1,
        vision_groups=1,
        vision_cut="0:12,1:7",
        parity_new_tokens=2,
        compare=False,
    )
    return export_model(settings, folder / "model", progress=lambda step: None).path
