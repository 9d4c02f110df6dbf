"""What to export and how: command-line options over a YAML model file over defaults."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edge_atp.errors import ConfigError
from export.precision import get_precision


@dataclass(frozen=True)
class ExportSettings:
    """One export.

    checkpoint: folder of the LLaVA checkpoint.
    text_tower: folder of the CLIP text tower, or ``open_clip:<name>/<tag or file>``; empty for
        none (pruning methods that read the question are then not available).
    model_id: name written into the manifest; the checkpoint folder's by default.
    prompt: template with {image} and {question}; empty takes the checkpoint's chat template.
    block_layers: layers per decoder graph; 0 for one graph. With blocks, tokens can be cut inside
        the language model.
    vision_groups: layers per vision graph; 0 for one graph. With groups, patches can be cut inside
        the vision encoder.
    vision_cut: "LAYER:KEPT", several with commas; empty for none. The directory then also holds the
        encoder that drops patches there on its own (``export.vision_cut``), for methods "cut+NAME".
    vision_feature_layer: hidden state that the projector reads, checked against the checkpoint;
        None for whatever that says.
    embed_layer: vision hidden state that the joint-space patch embeddings are taken from.
    max_kv: longest sequence; 0 takes image + text + 256 answer tokens.
    max_text_tokens: longest prompt without its visual tokens.
    alpha, keep_ratio, relevance_source: defaults of selection for this model; the source "value"
        changes what the vision graph computes (see ``export.vision``).
    resize: resize rule; empty takes the checkpoint's preprocessor.
    accuracy_set: labelled data set (``edge_atp.evaluation.dataset``) on which a quantised export
        must stay within a point of float32; empty for no such gate.
    calibration_set: labelled data set whose pictures and prompts give the ranges of static int8
        (dialects of TensorRT); empty takes the pictures of the parity gates.
    parity_images: folder of pictures for the parity gates; empty uses synthetic ones.
    compare: run the parity gates; without, the manifest says that nothing was compared.
    parity_new_tokens: answer tokens compared per prompt.
    """

    checkpoint: Path
    text_tower: str = ""
    model_id: str = ""
    revision: str = ""
    prompt: str = ""
    dialect: str = "ort-gqa"
    precision: str = "fp32"
    block_layers: int = 0
    vision_groups: int = 0
    vision_cut: str = ""
    vision_feature_layer: int | None = None
    embed_layer: int = -1
    max_kv: int = 0
    max_text_tokens: int = 256
    method: str = "atp"
    alpha: float = 0.5
    keep_ratio: float = 0.5
    relevance_source: str = "raw"
    resize: str = ""
    accuracy_set: str = ""
    calibration_set: str = ""
    parity_images: str = ""
    parity_questions: tuple[str, ...] = ()
    parity_new_tokens: int = 16
    compare: bool = True

    def __post_init__(self) -> None:
        get_precision(self.precision, self.dialect)
        if self.block_layers < 0:
            raise ConfigError(f"block_layers is {self.block_layers}; 0 for one decoder graph")
        if self.vision_groups < 0:
            raise ConfigError(f"vision_groups is {self.vision_groups}; 0 for one vision graph")
        if not 0.0 <= self.alpha <= 1.0:
            raise ConfigError(f"alpha is {self.alpha}; it must be in [0, 1]")
        if not 0.0 < self.keep_ratio <= 1.0:
            raise ConfigError(f"keep_ratio is {self.keep_ratio}; it must be in (0, 1]")
        if self.max_text_tokens < 8:
            raise ConfigError(f"max_text_tokens is {self.max_text_tokens}; at least 8 are needed")


# Model families whose graphs can be emitted, by their name in a model file.
_FAMILIES = ("llava",)
# Fields of a model file without an `export:` section, and the settings they give.
_CARD_FIELDS = {
    "checkpoint": "checkpoint",
    "text_tower": "text_tower",
    "name": "model_id",
    "pruner": "method",
    "alpha": "alpha",
    "keep_ratio": "keep_ratio",
    "relevance_source": "relevance_source",
}
# Settings that name something relative to the YAML file.
_PATHS = ("checkpoint", "text_tower", "parity_images", "accuracy_set", "calibration_set")


def read_settings(model: str, overrides: dict[str, Any]) -> ExportSettings:
    """Settings from a YAML model file, a checkpoint folder or a hub id, plus overrides.

    Args:
        model: ``models/<name>.yaml``, a folder, or ``owner/name`` on the Hugging Face hub.
        overrides: options given on the command line; None and "" are not overrides.
    Raises:
        ConfigError: an unknown field (the known ones are listed), or nothing at that place.
    """
    path = Path(model)
    if path.suffix in (".yaml", ".yml"):
        values = _read_yaml(path)
    elif path.is_dir():
        values = {"checkpoint": str(path)}
    elif model.count("/") == 1 and not path.exists():
        values = {"checkpoint": _download(model), "model_id": model}
    else:
        raise ConfigError(
            f"--model {model!r} is no YAML file, no folder and no hub id (owner/name)"
        )
    values.update({key: value for key, value in overrides.items() if value not in (None, "")})
    known = {field.name for field in dataclasses.fields(ExportSettings)}
    if unknown := sorted(set(values) - known):
        raise ConfigError(
            f"{model}: unknown field {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
    if "checkpoint" not in values:
        raise ConfigError(f"{model}: checkpoint is missing; give the checkpoint's folder")
    values["checkpoint"] = Path(values["checkpoint"])
    if "parity_questions" in values:
        values["parity_questions"] = tuple(values["parity_questions"])
    return ExportSettings(**values)


def _read_yaml(path: Path) -> dict[str, Any]:
    """The ``export:`` section of a model file, or its general fields where it has none."""
    try:
        card = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: not UTF-8
        raise ConfigError(f"{path} cannot be read ({error})") from error
    if not isinstance(card, dict):
        raise ConfigError(f"{path} holds no mapping")
    family = card.get("family", _FAMILIES[0])
    if family not in _FAMILIES:
        raise ConfigError(
            f"{path}: family {family!r} cannot be exported; the exporter supports"
            f" {', '.join(_FAMILIES)}. Run it with edge_atp.hf instead"
        )
    values = card.get("export")
    if values is None:
        values = {_CARD_FIELDS[key]: card[key] for key in _CARD_FIELDS if key in card}
        values["prompt"] = str(card.get("prompt", "")).replace("<image>", "{image}")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: export is {values!r}; it must be a mapping")
    values = dict(values)
    if "vision_feature_layer" in card:
        values.setdefault("vision_feature_layer", card["vision_feature_layer"])
    for name in _PATHS:
        if values.get(name):
            values[name] = _locate(path.parent, str(values[name]))
    return values


def _locate(base: Path, value: str) -> str:
    """A path beside the model file, an open_clip name, or a hub id."""
    if value.startswith("open_clip:"):
        return value
    local = (base / value).resolve()
    return _download(value) if not local.exists() and value.count("/") == 1 else str(local)


def _download(hub_id: str) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        # Only what is read: no pickled weights, no code.
        return snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors", "*.jinja"])
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ConfigError(f"--model {hub_id!r} could not be downloaded ({error})") from error
