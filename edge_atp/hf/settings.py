"""A supported checkpoint's file (models/*.yaml): where it is, and the pruning defaults it takes.

settings = ModelSettings.from_yaml("models/llava-1.5-7b.yaml")
model, processor = settings.load(dtype="auto", device_map="auto")
handle = settings.attach(model, processor, keep=64)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edge_atp.errors import ConfigError
from edge_atp.hf.attach import Handle, attach
from edge_atp.pruning.registry import option_names

# Keys of the file that other readers use.
_OTHER_READERS = frozenset({"prompt", "export", "directories"})
# Names that the exporter's part of the file gives to the same settings.
_EXPORT_NAMES = {
    "checkpoint": "checkpoint",
    "text_tower": "text_tower",
    "method": "pruner",
    "alpha": "alpha",
    "keep_ratio": "keep_ratio",
    "relevance_source": "relevance_source",
    "embed_layer": "embed_layer",
}


@dataclass(frozen=True)
class ModelSettings:
    """One checkpoint and its defaults; field names are the file's.

    checkpoint: Hugging Face name, or a folder relative to the file.
    family: VLM family, one of ``edge_atp.hf.families()``.
    text_tower: text encoder that matches the vision encoder, see ``load_tower``; "" for none.
    vision_feature_layer: hidden state that the projector reads; checked against the checkpoint.
    prune_site: "pre_projector" or "post_projector".
    position_ids: "compact" or "original".
    embed_layer: hidden state that joint-space patches are taken from, -1 for the last.
    pruner: default method.
    relevance_source, alpha: options of methods that have them.
    keep_ratio: default share of visual tokens kept, (0, 1].
    """

    name: str
    family: str
    checkpoint: str
    text_tower: str = ""
    vision_feature_layer: int | None = None
    prune_site: str = "pre_projector"
    position_ids: str = "compact"
    embed_layer: int = -1
    pruner: str = "atp"
    relevance_source: str = "raw"
    alpha: float = 0.5
    keep_ratio: float = 0.25

    @classmethod
    def from_yaml(cls, path: Path | str) -> ModelSettings:
        """Read a checkpoint's file.

        What the file says for the exporter (``export:``) holds here too, unless said again.

        Raises:
            ConfigError: the file is missing or malformed, a name unknown, or one missing.
        """
        path = Path(path)
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"cannot read the model settings {path}: {error}") from error
        if not isinstance(content, dict):
            raise ConfigError(f"{path}: expected a mapping, got {type(content).__name__}")
        exported = content.get("export") or {}
        values = {
            ours: exported[theirs] for theirs, ours in _EXPORT_NAMES.items() if theirs in exported
        }
        values |= {key: value for key, value in content.items() if key not in _OTHER_READERS}
        known = [entry.name for entry in dataclasses.fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise ConfigError(
                f"{path}: unknown setting {', '.join(unknown)}; known: {', '.join(known)}"
            )
        required = [e.name for e in dataclasses.fields(cls) if e.default is dataclasses.MISSING]
        if missing := [name for name in required if name not in values]:
            raise ConfigError(f"{path}: {', '.join(missing)} missing")
        for name in ("checkpoint", "text_tower"):
            folder = path.parent / str(values.get(name, ""))
            if values.get(name) and folder.is_dir():
                values[name] = str(folder)
        return cls(**values)

    def load(self, **options: Any) -> tuple[Any, Any]:
        """Model and processor, through ``from_pretrained``.

        Args:
            options: passed to the model's ``from_pretrained`` (dtype, device_map, ...).
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        model = AutoModelForImageTextToText.from_pretrained(self.checkpoint, **options)
        return model.eval(), AutoProcessor.from_pretrained(self.checkpoint)

    def attach(
        self,
        model: Any,
        processor: Any,
        pruner: str | None = None,
        keep: int | float | None = None,
        **overrides: Any,
    ) -> Handle:
        """``edge_atp.hf.attach`` with this file's defaults.

        The file's method and budget hold where the caller names none; a method inside the model
        keeps its own schedule.
        """
        self._check_layer(model)
        name = pruner or self.pruner
        if keep is None and name == self.pruner:
            keep = self.keep_ratio
        defaults: dict[str, Any] = {
            "family": self.family,
            "text_tower": self.text_tower or None,
            "embed_layer": self.embed_layer,
        }
        options = option_names(name)
        if name == self.pruner:
            defaults |= {"prune_site": self.prune_site, "position_policy": self.position_ids}
        for option in ("alpha", "relevance_source"):
            if option in options:
                defaults[option] = getattr(self, option)
        return attach(model, processor, name, keep, **{**defaults, **overrides})

    def _check_layer(self, model: Any) -> None:
        layer = getattr(model.config, "vision_feature_layer", None)
        if None not in (layer, self.vision_feature_layer) and layer != self.vision_feature_layer:
            raise ConfigError(
                f"{self.name}: vision_feature_layer is {self.vision_feature_layer} in the settings"
                f" and {layer} in the checkpoint; correct the settings"
            )
