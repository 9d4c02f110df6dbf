"""Models of open_clip by name, with their weights."""

from __future__ import annotations

from typing import Any

from edge_atp.errors import BackendUnavailableError, ConfigError


def load_open_clip(name: str) -> Any:
    """Load ``<model name>/<pretrained tag or file>``, in evaluation mode.

    Raises:
        BackendUnavailableError: open_clip is not installed.
        ConfigError: it does not know the model or cannot get its weights, or none are named: it
            would draw random ones.
    """
    try:
        import open_clip
    except ImportError as error:
        raise BackendUnavailableError(
            "text_tower 'open_clip:...' needs open_clip: pip install open_clip_torch"
        ) from error
    model_name, _, weights = name.partition("/")
    if model_name not in open_clip.list_models():
        raise ConfigError(
            f"open_clip has no model {model_name!r}; `open_clip.list_models()` lists them"
        )
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(model_name)) or "none"
    if not weights:
        raise ConfigError(
            f"open_clip:{model_name} names no weights; give open_clip:{model_name}/TAG (there are:"
            f" {tags}) or open_clip:{model_name}/FILE"
        )
    try:
        # weights_only: a pickled checkpoint must not run code.
        model = open_clip.create_model(model_name, pretrained=weights, weights_only=True)
    except Exception as error:  # whatever a damaged file makes of its reader
        raise ConfigError(
            f"open_clip cannot load {model_name!r} with weights {weights!r} ({error!r}); its tags"
            f" are: {tags}; or give the path of a downloaded file"
        ) from error
    return model.eval()
