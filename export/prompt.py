"""The prompt template and the image preprocessing a checkpoint was trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from edge_atp.errors import ArtifactError
from edge_atp.runtime.manifest import PreprocessSpec
from export.checkpoint import read_config

_QUESTION = "QUESTION-SLOT"
_INTERPOLATION = {0: "nearest", 2: "bilinear", 3: "bicubic"}


def image_token(tokenizer: Path, token_id: int) -> str:
    """Text of the image token.

    Raises:
        ArtifactError: the tokenizer has no such token.
    """
    token = Tokenizer.from_file(str(tokenizer)).id_to_token(token_id)
    if token is None:
        raise ArtifactError(
            f"{tokenizer} has no token {token_id}, which config.json names as the image token"
        )
    return str(token)


def template_from_chat(folder: Path, image: str) -> str:
    """The template with {image} and {question}, from the checkpoint's chat template.

    Raises:
        ArtifactError: there is none, or it does not place both slots.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    template = _chat_template(folder) or tokenizer.chat_template
    if not template:
        raise ArtifactError(
            f"{folder} has no chat template; give the prompt with --prompt, such as"
            f" 'USER: {{image}}\\n{{question}} ASSISTANT:'"
        )
    content = [{"type": "image"}, {"type": "text", "text": _QUESTION}]
    text: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=template,
        tokenize=False,
        add_generation_prompt=True,
    )
    if text.count(image) != 1 or text.count(_QUESTION) != 1:
        raise ArtifactError(
            f"the chat template of {folder} renders to {text!r}, without exactly one {image} and"
            " one question; give the prompt with --prompt"
        )
    # The tokenizer adds the start token by itself; keeping the template's would double it.
    if tokenizer.bos_token and text.startswith(tokenizer.bos_token):
        text = text[len(tokenizer.bos_token) :]
    return text.replace(image, "{image}").replace(_QUESTION, "{question}")


def _chat_template(folder: Path) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "chat_template.json").is_file():
        return str(read_config(folder, "chat_template.json").get("chat_template") or "") or None
    return None


def read_preprocess(folder: Path, image_size: int, resize: str) -> PreprocessSpec:
    """Image preprocessing from ``preprocessor_config.json``.

    Args:
        resize: rule that overrides the file's; "" for the file's.
    Raises:
        ArtifactError: the file is missing or describes something else than the vision tower takes.
    """
    name = "preprocessor_config.json"
    if not (folder / name).is_file() and (folder / "processor_config.json").is_file():
        config = read_config(folder, "processor_config.json").get("image_processor") or {}
    else:
        config = read_config(folder, name)
    size = _side(config.get("crop_size") if config.get("do_center_crop") else config.get("size"))
    if size != image_size:
        raise ArtifactError(
            f"{folder / name}: images become {size} pixels wide; the vision encoder takes"
            f" {image_size}"
        )
    squash = not config.get("do_center_crop", True) or "height" in (config.get("size") or {})
    return PreprocessSpec(
        size=image_size,
        resize=resize or ("squash" if squash else "shortest_edge_center_crop"),
        mean=tuple(float(v) for v in config["image_mean"]),
        std=tuple(float(v) for v in config["image_std"]),
        rescale=float(config.get("rescale_factor", 1.0 / 255.0)),
        interpolation=_INTERPOLATION.get(int(config.get("resample", 3)), "bicubic"),
    )


def _side(size: Any) -> int:
    if isinstance(size, dict):
        return int(size.get("shortest_edge") or size.get("width") or 0)
    return int(size or 0)
