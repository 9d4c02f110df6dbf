"""Tiny random checkpoints in the layout of real ones: LLaVA, CLIP text tower, BPE tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

SPECIAL = ("<pad>", "<s>", "<image>", "</s>")
VOCAB = 320
PROMPT = "USER: {image}\n{question} ASSISTANT:"
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
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
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
    vision = transformers.CLIPVisionConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=vision_layers,
        num_attention_heads=3,
        image_size=28,
        patch_size=7,
        initializer_range=0.1,
        initializer_factor=4.0,
    )
    config = transformers.LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=llm.to_dict(),
        image_token_index=2,
        image_seq_length=16,
        tie_word_embeddings=llm.tie_word_embeddings,
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Fresh models have zero biases and unit norms; random ones show a lost or swapped one.
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.generation_config.eos_token_id = 3
    model.generation_config.pad_token_id = 0
    model.to(dtype).save_pretrained(folder)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(), bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.save_pretrained(folder)
    transformers.CLIPImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    ).save_pretrained(folder)
    return folder


def save_text_tower(folder: Path, *, dtype: torch.dtype = torch.float16) -> Path:
    torch.manual_seed(1)
    config = transformers.CLIPTextConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=24,
        bos_token_id=1,
        eos_token_id=3,
        pad_token_id=0,
    )
    tower = transformers.CLIPTextModelWithProjection(config).to(dtype)
    tower.save_pretrained(folder)
    weight = (torch.randn(24, 48) * 0.2).to(dtype)
    save_file({"visual_projection.weight": weight}, str(folder / "visual_projection.safetensors"))
    tokenizer = train_tokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
