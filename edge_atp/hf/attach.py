"""Attach a pruning method to a loaded Hugging Face VLM, and take it off again.

The model stays the user's: hooks and two instance attributes are added, and ``detach`` removes
them exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge_atp.errors import ConfigError, MissingSignalError
from edge_atp.hf.budget import Keep
from edge_atp.hf.family import Family, Host
from edge_atp.hf.hooks.installation import Installation
from edge_atp.hf.hooks.interface import InterfacePruner
from edge_atp.hf.hooks.language import LanguageEntrance
from edge_atp.hf.hooks.questions import Questions
from edge_atp.hf.hooks.signals import SignalSource
from edge_atp.hf.hooks.vision_tap import VisionTap
from edge_atp.hf.registry import family_of, load_family
from edge_atp.hf.text.tower import TextTower, load_tower
from edge_atp.pruning import Pruner, load
from edge_atp.types import Selection

_HANDLE = "_edge_atp_handle"
_SITES = ("pre_projector", "post_projector")
_ATTENTION = frozenset({"cls_attention", "received_attention"})
_TEXT = frozenset({"text_embed", "clip_text_tokens", "text_tokens"})


class Handle:
    """A pruning method attached to a model.

    family: the VLM family that serves the model.
    pruner: the pruning method.
    """

    def __init__(self, family: Family, pruner: Pruner, questions: Questions) -> None:
        self.family = family
        self.pruner = pruner
        self._questions = questions
        self._installation = Installation()
        self._interface: InterfacePruner | None = None

    @property
    def last_selections(self) -> list[list[Selection]]:
        """What the last vision call kept: per prompt, per image.

        Indices count the image's visual tokens, tile after tile where it has several.
        """
        if self._interface is None or not self._interface.selections:
            return []
        samples = self._questions.samples
        result: list[list[Selection]] = [[] for _ in range(max(samples) + 1)]
        for sample, selection in zip(samples, self._interface.selections, strict=True):
            result[sample].append(selection)
        return result

    def set_question(self, question: str | Sequence[str] | None) -> None:
        """Score relevance by this text from now on: one for all prompts, or one per prompt.

        None goes back to the text of the prompts.
        """
        self._questions.set_given(question)


def attach(
    model: Any,
    processor: Any,
    pruner: str | Pruner = "atp",
    keep: int | float | None = None,
    *,
    family: str | None = None,
    text_tower: Any = None,
    position_policy: str | None = None,
    prune_site: str | None = None,
    per_tile: bool = True,
    attention_layer: int | None = None,
    **options: Any,
) -> Handle:
    """Prune the visual tokens of every following ``model(...)`` and ``model.generate(...)``.

    Args:
        model: a loaded ``transformers`` VLM with ``generate``.
        processor: its processor (or tokenizer).
        pruner: a method's name, or a method built with ``edge_atp.pruning.load``.
        keep: tokens kept per image (int), or their share in (0, 1] (float). Left out, methods
            inside the model follow their own schedule, all others keep a quarter. Methods in the
            language model count all visual tokens of a prompt together.
        family: name of the VLM family; found by ``model.config.model_type`` when left out.
        text_tower: text encoder that matches the vision encoder, see ``load_tower``.
        position_policy: "compact" renumbers positions without gaps, "original" keeps them; the
            family's or method's default when left out.
        prune_site: "pre_projector" or "post_projector"; before it when the method allows.
        per_tile: budget per tile or frame (True) or for the whole image or video.
        attention_layer: 0-based vision layer to score attention and keys of, negative from the
            end; the layer whose features are consumed when left out.
        options: the method's own options, when ``pruner`` is a name.
    Returns:
        Handle; ``detach(model)`` restores the model.
    Raises:
        ConfigError: unknown family, method or option, or a model that is attached already.
        MissingSignalError: the method needs what this model does not have.
    """
    if _HANDLE in model.__dict__:
        raise ConfigError("the model is pruned already; call edge_atp.hf.detach(model) first")
    method = _build(pruner, options)
    served = load_family(family) if family is not None else family_of(model)
    host = served.host(model)
    policy = _choose_policy(served, position_policy)
    tokenizer = getattr(processor, "tokenizer", processor)
    embeddings = model.get_input_embeddings()
    tower = None if text_tower is None else load_tower(text_tower, embeddings, tokenizer)
    _check_signals(method, host, tower)
    text = _wanted(method) & _TEXT
    questions = Questions(tokenizer, host.placeholder_ids, embeddings, tower, text)
    handle = Handle(served, method, questions)
    interface = InterfacePruner(
        served,
        host,
        method,
        Keep(0.25 if keep is None else keep, per_tile),
        _signal_source(served, host, method, tower, VisionTap(host.vision, attention_layer)),
        questions.lookup,
        before_projector=_before_projector(method, prune_site, tower),
    )
    entrance = LanguageEntrance(host, policy)
    _install(handle, host, interface, entrance)
    model.__dict__[_HANDLE] = handle
    return handle


def detach(model: Any) -> None:
    """Remove pruning from a model; it is then as it was before ``attach``.

    Raises:
        ConfigError: nothing is attached.
    """
    handle = model.__dict__.pop(_HANDLE, None)
    if handle is None:
        raise ConfigError("the model has no pruning attached; call edge_atp.hf.attach first")
    handle._installation.undo()


def _build(pruner: str | Pruner, options: dict[str, Any]) -> Pruner:
    if isinstance(pruner, str):
        return load(pruner, **options)
    if options:
        raise ConfigError(
            f"options {', '.join(sorted(options))} were given beside a built pruner; set them in"
            " edge_atp.pruning.load"
        )
    return pruner


def _choose_policy(family: Family, policy: str | None) -> str:
    if policy is None:
        return family.position_policy
    if policy not in family.policies:
        raise ConfigError(
            f"position_policy is {policy!r}; {type(family).__module__.rsplit('.', 1)[-1]} supports"
            f" {', '.join(family.policies)}"
        )
    return policy


def _check_signals(method: Pruner, host: Host, tower: TextTower | None) -> None:
    """Fail at attach time for what can be known then."""
    if "cls_attention" in method.needs and not host.vision.has_cls:
        raise MissingSignalError(
            f"{method.name} needs cls_attention, but {type(host.vision.module).__name__} has no CLS"
            " token; choose a method that works with received attention (atp) or without attention"
            " (divprune, trimtokenator)"
        )
    joint = {"text_embed", "clip_text_tokens", "patch_embeds"} & set(method.needs)
    if joint and tower is None:
        raise MissingSignalError(
            f"{method.name} needs {', '.join(sorted(joint))}: attach with text_tower=..., the text"
            " encoder that was trained with this vision encoder (see models/*.yaml), or 'llm'"
        )


def _before_projector(method: Pruner, site: str | None, tower: TextTower | None) -> bool:
    if site is not None and site not in _SITES:
        raise ConfigError(f"prune_site is {site!r}; choose one of {', '.join(_SITES)}")
    in_language_model = tower is not None and tower.in_language_model
    after = "image_embeds" in method.needs or (in_language_model and "patch_embeds" in method.needs)
    if after and site == "pre_projector":
        raise ConfigError(
            f"{method.name} compares projected tokens; prune_site must be 'post_projector'"
        )
    return not after and site != "post_projector"


def _wanted(method: Pruner) -> frozenset[str]:
    """Signals the method can use."""
    return frozenset(method.needs).union(*method.needs_one_of)


def _signal_source(
    family: Family, host: Host, method: Pruner, tower: TextTower | None, tap: VisionTap
) -> SignalSource:
    return SignalSource(
        family=family,
        host=host,
        tap=tap,
        text_tower=tower,
        needs=_wanted(method),
        relevance_source=getattr(method, "relevance_source", "raw"),
        mean_keys=bool(getattr(method, "mean_keys", False)),
    )


def _install(
    handle: Handle, host: Host, interface: InterfacePruner, entrance: LanguageEntrance
) -> None:
    installation, questions = handle._installation, handle._questions
    in_generate = False

    def generate(original: Any, *args: Any, question: Any = None, **kwargs: Any) -> Any:
        nonlocal in_generate
        ids = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs"))
        state = entrance.state(kwargs.get("past_key_values"))
        if state is not None and ids is not None:
            entrance.new_tokens = _new_tokens(ids, kwargs.get("attention_mask"), state.seen)
            questions.set_prompt(ids[:, -entrance.new_tokens :])
        else:
            questions.set_prompt(ids)
        if question is not None:
            questions.set_given(question)
        in_generate = True
        try:
            return original(*args, **kwargs)
        finally:
            in_generate = False
            if question is not None:
                questions.set_given(None)

    def refuse_labels(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("labels") is not None:
            raise ConfigError(
                "labels are not supported while visual tokens are pruned, because they count the"
                " full prompt; call edge_atp.hf.detach(model) before training"
            )

    def learn_prompt(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not in_generate:
            questions.set_prompt(args[0] if args else kwargs.get("input_ids"))

    installation.wrap(host.model, "generate", generate)
    installation.before(host.model, refuse_labels)
    installation.before(host.inner, learn_prompt)
    interface.install(installation)
    entrance.install(installation)
    handle._interface = interface


def _new_tokens(ids: Any, mask: Any, seen: int) -> int:
    """Tokens of a continued conversation that the cache has not seen.

    ``generate`` takes the whole conversation, or only its new part with a mask over the whole.
    """
    length: int = ids.shape[1]
    if mask is not None and mask.shape[1] != length:
        return length
    return length - seen
