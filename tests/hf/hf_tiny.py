"""Small models of each family from their real config classes, with random weights."""

import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    CLIPConfig,
    CLIPModel,
    IdeficsConfig,
    IdeficsForVisionText2Text,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SiglipConfig,
    SiglipModel,
)

# Tiny matrices: threads cost more than they give.
torch.set_num_threads(1)

CORPUS = [
    "USER: is there a red box on the shelf? ASSISTANT: yes",
    "what is in front of the forklift, and how many pallets are blue?",
    "Question: which aisle is blocked? Answer: the left one",
]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<video>", "<|im_start|>", "<|im_end|>"]


def tokenizer(vocab_size=320, template=None):
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = ByteLevelDecoder()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet
    )
    raw.train_from_iterator(CORPUS, trainer)
    if template:
        ids = [(t, raw.token_to_id(t)) for t in ("<s>", "</s>")]
        raw.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        additional_special_tokens=["<image>", "<video>"],
        clean_up_tokenization_spaces=False,
    )


TOKENIZER = tokenizer()
SIGLIP_TOKENIZER = tokenizer(template="$A </s>")
CLIP_TOKENIZER = tokenizer(template="<s> $A </s>")
IMAGE_ID = TOKENIZER.convert_tokens_to_ids("<image>")
VIDEO_ID = TOKENIZER.convert_tokens_to_ids("<video>")
VOCAB = len(TOKENIZER)

VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
    "projection_dim": 20,
}
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
PATCHES = 16


def randomised(model, seed=0):
    """Weights large enough that attention and greedy decoding are not degenerate."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            scale = 2.0 / parameter.shape[-1] ** 0.5
            # Text and visual tokens of similar length, as trained projectors give them.
            scale = 1.0 if "embed_tokens" in name else scale
            scale = 0.3 / parameter.shape[-1] ** 0.5 if "projector" in name else scale
            parameter.data = torch.randn(parameter.shape, generator=generator) * scale
        elif "newline" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
        elif "norm" not in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


def llava(attention="sdpa", seed=0, vision_feature_layer=-2):
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **VISION},
        text_config={"model_type": "llama", **TEXT},
        image_token_id=IMAGE_ID,
        image_seq_length=PATCHES,
        vision_feature_layer=vision_feature_layer,
        vision_feature_select_strategy="default",
    )
    config._attn_implementation = attention
    return randomised(LlavaForConditionalGeneration(config), seed)


def llava_next(attention="sdpa", seed=0):
    config = LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", **VISION},
        text_config={"model_type": "llama", **TEXT},
        image_token_id=IMAGE_ID,
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    config._attn_implementation = attention
    return randomised(LlavaNextForConditionalGeneration(config), seed)


def llava_next_video(seed=0):
    config = LlavaNextVideoConfig(
        vision_config={"model_type": "clip_vision_model", **VISION},
        text_config={"model_type": "llama", **TEXT},
        image_token_id=IMAGE_ID,
        video_token_id=VIDEO_ID,
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return randomised(LlavaNextVideoForConditionalGeneration(config), seed)


def llava_onevision(aspect="anyres_max_9", seed=0):
    config = LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **VISION},
        text_config={"model_type": "qwen2", **TEXT},
        image_token_id=IMAGE_ID,
        video_token_id=VIDEO_ID,
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=aspect,
    )
    return randomised(LlavaOnevisionForConditionalGeneration(config), seed)


# The width of timm's smallest EVA model, which open_clip builds its EVA-CLIP towers from.
EVA_WIDTH = 192


def blip2(seed=0):
    config = Blip2Config(
        vision_config={
            "hidden_size": EVA_WIDTH,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "image_size": 56,
            "patch_size": 14,
        },
        qformer_config={
            "vocab_size": 30,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "encoder_hidden_size": EVA_WIDTH,
        },
        text_config={
            "model_type": "opt",
            "hidden_size": 48,
            "word_embed_proj_dim": 48,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": VOCAB,
            "max_position_embeddings": 256,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": None,
        },
        num_query_tokens=4,
        image_token_index=IMAGE_ID,
    )
    model = randomised(Blip2ForConditionalGeneration(config), seed)
    model.language_model.generation_config.eos_token_id = None
    model.language_model.generation_config.pad_token_id = 0
    return model


def eva_clip(seed=7):
    """An open_clip model with a timm EVA image side, as ``EVA01-g-14`` has."""
    torch.manual_seed(seed)
    model = CustomTextCLIP(
        embed_dim=20,
        vision_cfg={
            "image_size": 56,
            "timm_model_name": "eva02_tiny_patch14_224",
            "timm_pool": "token",
            "timm_proj": None,
        },
        text_cfg={"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    )
    return model.eval(), SimpleTokenizer(context_length=16)


def idefics(seed=0):
    config = IdeficsConfig(
        vision_config={**VISION, "embed_dim": VISION["hidden_size"]},
        perceiver_config={
            "use_resampler": True,
            "resampler_n_latents": 4,
            "resampler_depth": 2,
            "resampler_n_heads": 2,
            "resampler_head_dim": 8,
        },
        use_resampler=True,
        additional_vocab_size=0,
        cross_layer_interval=2,
        qk_layer_norms=False,
        **{**TEXT, "num_key_value_heads": 4},
    )
    model = randomised(IdeficsForVisionText2Text(config), seed)
    for layer in model.model.gated_cross_attn_layers:  # closed gates hide the image
        layer.alpha_cross_attn.data.fill_(1.0)
        layer.alpha_dense.data.fill_(1.0)
    return model


def open_clip_vit(seed=8):
    """An open_clip model with its own ViT, as ``ViT-H-14`` has."""
    torch.manual_seed(seed)
    model = CLIP(
        embed_dim=20,
        vision_cfg={"image_size": 16, "patch_size": 4, "width": 32, "layers": 2, "head_width": 8},
        text_cfg={"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    )
    return model.eval(), SimpleTokenizer(context_length=16)


def siglip(seed=6):
    """SigLIP reads a fixed length of 16 tokens, padded, and pools the last one."""
    text = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": len(SIGLIP_TOKENIZER),
        "max_position_embeddings": 16,
        "projection_size": 32,
    }
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model.eval(), SIGLIP_TOKENIZER


QWEN_TEXT = {
    **TEXT,
    "rope_parameters": {
        "rope_type": "default",
        "mrope_section": [2, 2, 2],
        "rope_theta": 10000.0,
    },
}


def qwen2_vl(attention="sdpa", seed=0):
    config = Qwen2VLConfig(
        vision_config={
            "depth": 4,
            "embed_dim": 32,
            "hidden_size": TEXT["hidden_size"],
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        text_config=QWEN_TEXT,
        image_token_id=IMAGE_ID,
        video_token_id=VIDEO_ID,
        vision_start_token_id=6,
        vision_end_token_id=7,
    )
    config._attn_implementation = attention
    return randomised(Qwen2VLForConditionalGeneration(config), seed)


def qwen2_5_vl(attention="sdpa", seed=0):
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 4,
            "hidden_size": 32,
            "out_hidden_size": TEXT["hidden_size"],
            "intermediate_size": 48,
            "num_heads": 4,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 16,
            "fullatt_block_indexes": [0, 2],
        },
        text_config=QWEN_TEXT,
        image_token_id=IMAGE_ID,
        video_token_id=VIDEO_ID,
        vision_start_token_id=6,
        vision_end_token_id=7,
    )
    config._attn_implementation = attention
    return randomised(Qwen2_5_VLForConditionalGeneration(config), seed)


def clip(vision=VISION, seed=5):
    text = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": len(CLIP_TOKENIZER),
        "max_position_embeddings": 24,
        "bos_token_id": 1,
        "eos_token_id": CLIP_TOKENIZER.eos_token_id + 0,
        "pad_token_id": 0,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)
    model = CLIPModel(config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model.eval(), CLIP_TOKENIZER


def prompts(questions, images=1, tokens=PATCHES, placeholder="<image>"):
    """Tokenised prompts, left-padded: "USER: <image>... question ASSISTANT:"."""
    images = [images] * len(questions) if isinstance(images, int) else images
    tokens = [tokens] * len(questions) if isinstance(tokens, int) else tokens
    texts = [
        "<s>USER: " + (placeholder * length + "\n") * count + question + " ASSISTANT:"
        for question, count, length in zip(questions, images, tokens, strict=True)
    ]
    return TOKENIZER(texts, return_tensors="pt", padding=True, add_special_tokens=False)


def pixels(count, size=16, seed=1):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
