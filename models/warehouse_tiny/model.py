"""Build and save the model: a LLaVA (CLIP ViT, projector, Llama) and its CLIP text tower.

The ViT is stored once, inside the LLaVA checkpoint. The CLIP side adds the text tower and the
visual projection of the shared joint space. All files load with plain ``transformers``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from models.warehouse_tiny import tokenizer as tok
from models.warehouse_tiny.preprocess import IMAGE_MEAN, IMAGE_STD
from models.warehouse_tiny.vocabulary import GRID, IMAGE_SIZE, PATCH_SIZE

TEXT_TOWER_FOLDER = "text_tower"
VISUAL_PROJECTION_FILE = "visual_projection.safetensors"
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% endif %}"
    "{% endfor %}{% for part in message['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% else %} ASSISTANT: "
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}</s>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the three parts. ``vision_feature_layer`` -2 is the layer LLaVA consumes."""

    vision_width: int = 192
    vision_layers: int = 6
    vision_heads: int = 3
    vision_ffn: int = 768
    text_width: int = 128
    text_layers: int = 3
    text_heads: int = 2
    text_ffn: int = 384
    joint_width: int = 128
    llm_width: int = 256
    llm_layers: int = 4
    llm_heads: int = 4
    llm_ffn: int = 704
    vision_feature_layer: int = -2

    def __post_init__(self) -> None:
        for width, heads in (
            ("vision_width", "vision_heads"),
            ("text_width", "text_heads"),
            ("llm_width", "llm_heads"),
        ):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(
                    f"{width} is {getattr(self, width)}; make it a multiple of "
                    f"{heads} ({getattr(self, heads)})"
                )


class WarehouseModel(nn.Module):
    """The trainable whole: ``llava``, ``text_tower``, ``visual_projection``, ``logit_scale``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.llava = LlavaForConditionalGeneration(_llava_config(config))
        self.text_tower = CLIPTextModelWithProjection(_text_config(config))
        self.visual_projection = nn.Linear(config.vision_width, config.joint_width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(float(np.log(10.0))))

    @property
    def vision(self) -> nn.Module:
        """The CLIP vision transformer."""
        tower = self.llava.model.vision_tower
        return tower.vision_model if hasattr(tower, "vision_model") else tower

    @property
    def projector(self) -> nn.Module:
        """Two-layer MLP from ViT width to LLM width."""
        return self.llava.model.multi_modal_projector

    @property
    def llm(self) -> nn.Module:
        """The Llama decoder without its head."""
        return self.llava.model.language_model


def _llava_config(config: ModelConfig) -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=config.vision_width,
        intermediate_size=config.vision_ffn,
        num_hidden_layers=config.vision_layers,
        num_attention_heads=config.vision_heads,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=config.joint_width,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=tok.VOCAB_SIZE,
        hidden_size=config.llm_width,
        intermediate_size=config.llm_ffn,
        num_hidden_layers=config.llm_layers,
        num_attention_heads=config.llm_heads,
        num_key_value_heads=config.llm_heads,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        pad_token_id=tok.PAD_ID,
        bos_token_id=tok.BOS_ID,
        eos_token_id=tok.EOS_ID,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tok.IMAGE_ID,
        vision_feature_layer=config.vision_feature_layer,
        vision_feature_select_strategy="default",
        image_seq_length=GRID * GRID,
        tie_word_embeddings=True,
        pad_token_id=tok.PAD_ID,
    )


def _text_config(config: ModelConfig) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=tok.VOCAB_SIZE,
        hidden_size=config.text_width,
        intermediate_size=config.text_ffn,
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.text_heads,
        max_position_embeddings=77,
        projection_dim=config.joint_width,
        hidden_act="gelu",
        pad_token_id=tok.PAD_ID,
        bos_token_id=tok.BOS_ID,
        eos_token_id=tok.EOS_ID,
    )


def sincos_positions(width: int) -> torch.Tensor:
    """(257, width) 2-D sine-cosine table, zeros for CLS: where patches learn to be.

    Without it the places on the shelves were not learnt in the time a CPU has.
    """
    quarter = width // 4
    frequency = 1.0 / 100.0 ** (torch.arange(quarter) / quarter)
    angle = torch.arange(GRID)[:, None] * frequency[None]
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows = axis[:, None, :].expand(GRID, GRID, -1)
    columns = axis[None, :, :].expand(GRID, GRID, -1)
    table = torch.cat([rows, columns], dim=-1).reshape(GRID * GRID, -1)
    return torch.cat([torch.zeros(1, table.shape[1]), table])


def build_model(seed: int = 0, config: ModelConfig | None = None) -> WarehouseModel:
    """Fresh model with seeded initial values."""
    torch.manual_seed(seed)
    model = WarehouseModel(config or ModelConfig())
    embeddings = model.vision.embeddings
    with torch.no_grad():
        embeddings.position_embedding.weight.copy_(
            0.5 * sincos_positions(model.config.vision_width)
        )
        nn.init.normal_(embeddings.patch_embedding.weight, std=0.04)
    nn.init.normal_(model.visual_projection.weight, std=model.config.vision_width**-0.5)
    return model


def build_processor(tokenizer: Tokenizer) -> LlavaProcessor:
    """Image processor (shortest edge 224, centre crop), tokenizer and chat template."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": "<image>"},
    )
    image = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        resample=2,  # bilinear with antialias
        image_mean=list(IMAGE_MEAN),
        image_std=list(IMAGE_STD),
    )
    return LlavaProcessor(
        image_processor=image,
        tokenizer=fast,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
    )


def save_checkpoint(
    model: WarehouseModel, folder: Path, dtype: torch.dtype = torch.float16
) -> None:
    """Write the checkpoint in its final layout (see README.md of this folder)."""
    tokenizer = tok.train_tokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    build_processor(tokenizer).save_pretrained(folder)
    generation = model.llava.generation_config
    generation.pad_token_id, generation.bos_token_id = tok.PAD_ID, tok.BOS_ID
    generation.eos_token_id, generation.do_sample = tok.EOS_ID, False
    generation.max_new_tokens = 96
    frozen = _copy(model).to(dtype)
    frozen.llava.save_pretrained(folder)
    tower = folder / TEXT_TOWER_FOLDER
    frozen.text_tower.save_pretrained(tower)
    PreTrainedTokenizerFast(
        tokenizer_object=tok.text_tower_tokenizer(tokenizer),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=77,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(tower)
    save_file(
        {
            "visual_projection.weight": frozen.visual_projection.weight.detach().contiguous(),
            "logit_scale": frozen.logit_scale.detach().reshape(1),
        },
        tower / VISUAL_PROJECTION_FILE,
    )


def _copy(model: WarehouseModel) -> WarehouseModel:
    copy = WarehouseModel(model.config)
    copy.load_state_dict(model.state_dict())
    copy.llava.generation_config = model.llava.generation_config
    return copy


def load_checkpoint(folder: Path, config: ModelConfig | None = None) -> WarehouseModel:
    """Read a saved checkpoint into a trainable fp32 model."""
    model = WarehouseModel(config or ModelConfig())
    llava = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model.llava.load_state_dict(llava.state_dict())
    tower = CLIPTextModelWithProjection.from_pretrained(
        folder / TEXT_TOWER_FOLDER, dtype=torch.float32
    )
    model.text_tower.load_state_dict(tower.state_dict())
    extra = load_file(folder / TEXT_TOWER_FOLDER / VISUAL_PROJECTION_FILE)
    with torch.no_grad():
        model.visual_projection.weight.copy_(extra["visual_projection.weight"].float())
        model.logit_scale.copy_(extra["logit_scale"].float()[0])
    return model
