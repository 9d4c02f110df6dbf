"""Random checkpoints of real shapes, for timing: weights do not matter there, widths do.

Run: ``python -m benchmarks.shapes S OUT`` (M, llava7b-L2). They bring no chat template: ::

    python -m export --model OUT --text-tower OUT/text_tower --out DIR \\
      --prompt $'USER: {image}\\n{question} ASSISTANT:'
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

SPECIAL = ("<pad>", "<s>", "<image>", "</s>")
PROMPT = "USER: {image}\n{question} ASSISTANT:"


@dataclass(frozen=True)
class Shape:
    """Widths and depths of one LLaVA; the image gives ``(image_size / patch_size) ** 2`` tokens."""

    vision_width: int
    vision_layers: int
    vision_heads: int
    image_size: int
    patch_size: int
    llm_width: int
    llm_layers: int
    llm_heads: int
    llm_kv_heads: int
    llm_ffn: int
    vocab: int
    text_width: int = 128
    text_layers: int = 3
    text_heads: int = 2
    joint_width: int = 128
    # 0: the usual multiple of the width.
    vision_ffn: int = 0
    text_ffn: int = 0

    @property
    def num_patches(self) -> int:
        """Visual tokens of one image."""
        return (self.image_size // self.patch_size) ** 2


LLAVA_7B = Shape(
    1024, 24, 16, 336, 14, 4096, 32, 32, 32, 11008, 32064,
    text_width=768, text_layers=12, text_heads=12, joint_width=768, text_ffn=3072,
)  # fmt: skip
# S and M are the two sizes that edge figures of this project are given for; llava7b-L2 is two
# layers of the real width of LLaVA-1.5-7B, llava7b-V24-L4 its whole vision encoder and four layers.
SHAPES = {
    "S": Shape(192, 6, 3, 224, 14, 256, 6, 4, 4, 704, 1024),
    "M": Shape(192, 6, 3, 224, 14, 512, 10, 8, 8, 1408, 4096),
    "llava7b-V24-L4": replace(LLAVA_7B, llm_layers=4),
    "llava7b-L2": replace(LLAVA_7B, vision_layers=2, llm_layers=2),
}


def llama_config(shape: Shape, **changes: Any) -> transformers.LlamaConfig:
    """The language model of a shape."""
    settings: dict[str, Any] = {
        "vocab_size": shape.vocab,
        "hidden_size": shape.llm_width,
        "intermediate_size": shape.llm_ffn,
        "num_hidden_layers": shape.llm_layers,
        "num_attention_heads": shape.llm_heads,
        "num_key_value_heads": shape.llm_kv_heads,
        "max_position_embeddings": 4096,
        "bos_token_id": 1,
        "pad_token_id": 0,
    }
    return transformers.LlamaConfig(**{**settings, **changes})


def llava_config(shape: Shape, llm: Any, **vision: Any) -> transformers.LlavaConfig:
    """A shape's vision encoder in front of a language model.

    Args:
        llm: the language model's configuration.
        vision: further fields of the encoder's.
    """
    encoder = transformers.CLIPVisionConfig(
        hidden_size=shape.vision_width,
        intermediate_size=shape.vision_ffn or 4 * shape.vision_width,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_heads,
        image_size=shape.image_size,
        patch_size=shape.patch_size,
        **vision,
    )
    return transformers.LlavaConfig(
        vision_config=encoder.to_dict(),
        text_config=llm.to_dict(),
        image_token_index=SPECIAL.index("<image>"),
        image_seq_length=shape.num_patches,
        tie_word_embeddings=llm.tie_word_embeddings,
    )


def save(shape: Shape, folder: Path, *, dtype: torch.dtype = torch.float16) -> None:
    """Write the LLaVA checkpoint and, in ``text_tower/``, its CLIP text encoder."""
    torch.manual_seed(0)
    # No end token: every answer has the same length.
    llm = llama_config(shape, eos_token_id=None, initializer_range=0.05)
    with torch.device("cpu"):
        model = transformers.LlavaForConditionalGeneration._from_config(
            llava_config(shape, llm), dtype=dtype
        )
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    save_processor(folder, byte_tokenizer(), shape.image_size)
    save_text_tower(shape, folder / "text_tower", byte_tokenizer(), dtype=dtype)


def save_processor(folder: Path, tokenizer: Tokenizer, side: int) -> None:
    """Write tokenizer and image processor beside a model."""
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)
    transformers.CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    ).save_pretrained(folder)


def save_text_tower(
    shape: Shape,
    folder: Path,
    tokenizer: Tokenizer,
    *,
    dtype: torch.dtype = torch.float16,
    **changes: Any,
) -> None:
    """Write a CLIP text encoder with the projection of a shape's patches into its space.

    Args:
        changes: fields of the encoder's configuration.
    """
    settings: dict[str, Any] = {
        "vocab_size": shape.vocab,
        "hidden_size": shape.text_width,
        "intermediate_size": shape.text_ffn or 3 * shape.text_width,
        "num_hidden_layers": shape.text_layers,
        "num_attention_heads": shape.text_heads,
        "projection_dim": shape.joint_width,
        "bos_token_id": 1,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    config = transformers.CLIPTextConfig(**{**settings, **changes})
    transformers.CLIPTextModelWithProjection(config).to(dtype).save_pretrained(folder)
    weight = torch.randn(shape.joint_width, shape.vision_width) * shape.vision_width**-0.5
    save_file(
        {"visual_projection.weight": weight.to(dtype)},
        str(folder / "visual_projection.safetensors"),
    )
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def byte_tokenizer() -> Tokenizer:
    """One token per byte, behind the four special ones."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    save(SHAPES[options.shape], options.folder)


if __name__ == "__main__":
    main()
