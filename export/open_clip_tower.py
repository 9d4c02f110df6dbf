"""A CLIP text tower from open_clip, under the names and tokenizer files the exporter uses.

open_clip stores attention as one packed projection and its tokenizer as a Python class; both are
rewritten here. Only CLIP's own text transformer is covered, no Hugging Face text encoders inside
open_clip.
"""

from __future__ import annotations

import atexit
import gzip
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip import tokenizer as open_clip_tokenizer
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from edge_atp.errors import ArtifactError
from edge_atp.hf.text.open_clip_weights import load_open_clip
from export.checkpoint import TensorStore
from export.text_tower import TextTower, canonical_text_name

_START, _END = "<start_of_text>", "<end_of_text>"
# The pattern of CLIP's tokenizer: contractions, letters, single digits, everything else.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def read_open_clip(name: str) -> TextTower:
    """Load ``<model name>/<pretrained tag or file>`` with open_clip.

    Raises:
        ConfigError: open_clip does not know it or cannot get its weights.
        ArtifactError: its text encoder is of another kind.
    """
    model_name = name.partition("/")[0]
    config = open_clip.get_model_config(model_name)
    if config is not None:  # before weights are fetched
        _require_clip_text(model_name, config["text_cfg"])
    model = load_open_clip(name)
    text = config["text_cfg"]
    folder = Path(tempfile.mkdtemp(prefix="edge_atp_open_clip_"))
    # Tensors are read from there until the export ends.
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    state = {key: value.float().numpy() for key, value in model.state_dict().items()}
    save_file(_renamed(state), str(folder / "model.safetensors"))
    tokenizer = build_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    tensors = TensorStore(folder, canonical_text_name)
    quick = config.get("quick_gelu", False) or model_name.endswith("-quickgelu")
    return TextTower(
        source=f"open_clip:{name}",
        hidden=int(text["width"]),
        layers=int(text["layers"]),
        heads=int(text["heads"]),
        context_length=int(text.get("context_length", 77)),
        activation="quick_gelu" if quick else "gelu",
        norm_eps=1e-5,
        embed_dim=int(config["embed_dim"]),
        bos_token_id=_token_id(tokenizer, _START),
        eos_token_id=_token_id(tokenizer, _END),
        tensors=tensors,
        visual_projection=tensors.get("visual_projection.weight"),
        tokenizer=folder / "tokenizer.json",
        load_reference=lambda: _reference(model),
    )


def _require_clip_text(model_name: str, text: dict[str, Any]) -> None:
    if "hf_model_name" in text or text.get("pool_type", "argmax") != "argmax":
        raise ArtifactError(
            f"open_clip model {model_name!r} has a text encoder that is not CLIP's own; use one"
            " of the ViT-*/CLIP models"
        )


def _reference(model: Any) -> Callable[[Any], Any]:
    def encode(input_ids: torch.Tensor) -> torch.Tensor:
        # open_clip pads to the context with zeros and pools at the largest id, the end token.
        padded = torch.nn.functional.pad(
            input_ids, (0, int(model.context_length) - input_ids.shape[1])
        )
        embeds: torch.Tensor = model.encode_text(padded)
        return embeds

    return encode


def _renamed(state: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """open_clip's tensors under the names of transformers' CLIPTextModelWithProjection."""
    named = {
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "text_model.final_layer_norm.weight": state["ln_final.weight"],
        "text_model.final_layer_norm.bias": state["ln_final.bias"],
        "text_projection.weight": state["text_projection"].T,
        "visual_projection.weight": state["visual.proj"].T,
    }
    parts = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    start = "transformer.resblocks."
    for key, value in state.items():
        if not key.startswith(start):
            continue
        index, _, rest = key[len(start) :].partition(".")
        prefix = f"text_model.encoder.layers.{index}"
        part, _, kind = rest.rpartition(".")
        if part in parts:
            named[f"{prefix}.{parts[part]}.{kind}"] = value
        elif rest.startswith("attn.in_proj_"):
            kind = rest[len("attn.in_proj_") :]
            for letter, chunk in zip("qkv", np.split(value, 3), strict=True):
                named[f"{prefix}.self_attn.{letter}_proj.{kind}"] = chunk
    return {key: np.ascontiguousarray(value) for key, value in named.items()}


def build_tokenizer() -> Tokenizer:
    """CLIP's byte-pair tokenizer in the ``tokenizers`` library, from open_clip's vocabulary."""
    merges = _merges()
    alphabet = list(open_clip_tokenizer.bytes_to_unicode().values())
    words = alphabet + [letter + "</w>" for letter in alphabet]
    words += ["".join(pair) for pair in merges] + [_START, _END]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", unk_token=_END)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    ids = [(_START, vocabulary[_START]), (_END, vocabulary[_END])]
    tokenizer.add_special_tokens([_START, _END])
    tokenizer.post_processor = TemplateProcessing(single=f"{_START} $A {_END}", special_tokens=ids)
    return tokenizer


def _token_id(tokenizer: Tokenizer, token: str) -> int:
    """Id of a token that ``build_tokenizer`` added itself."""
    number = tokenizer.token_to_id(token)
    assert number is not None
    return number


def _merges() -> list[tuple[str, str]]:
    path = open_clip_tokenizer.default_bpe()
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        lines = stream.read().split("\n")
    # The file holds more merges than CLIP's vocabulary of 49408 uses.
    used = lines[1 : 49152 - 256 - 2 + 1]
    return [(first, second) for first, second in (line.split() for line in used)]
