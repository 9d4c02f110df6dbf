"""Attach a pruning method to a loaded Hugging Face VLM, and take it off again.

The model stays the user's: hooks and attributes of the instance are added, and ``detach`` removes
them exactly.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from edge_atp.errors import ConfigError
from edge_atp.hf.assemble import Parts, Request, assemble, text_needs
from edge_atp.hf.family import Family, Host
from edge_atp.hf.hooks.installation import Installation
from edge_atp.hf.hooks.language import LanguageEntrance
from edge_atp.hf.hooks.questions import Questions
from edge_atp.hf.registry import family_of, load_family
from edge_atp.hf.text.tower import load_tower
from edge_atp.pruning import Pruner, load
from edge_atp.types import Selection

_HANDLE = "_edge_atp_handle"


class Handle:
    """A pruning method attached to a model.

    family: the VLM family that serves the model.
    pruner: the pruning method.
    position_policy: what happens to position ids, "compact" or "original".
    """

    def __init__(self, family: Family, pruner: Pruner, parts: Parts, questions: Questions) -> None:
        self.family = family
        self.pruner = pruner
        self.position_policy = parts.policy
        self._parts = parts
        self._questions = questions
        self._installation = Installation()

    @property
    def last_selections(self) -> list[list[Selection]]:
        """What the last prompts kept: per prompt, per image.

        Indices count the image's visual tokens, tile after tile where it has several. Methods
        inside the language model give one selection per prompt, after the last cut; it counts the
        visual tokens that entered the language model (for IVTP, those that stage 1 left).
        """
        if self._parts.decoder is not None:
            return self._last_cut()
        projector = self._parts.projector
        if projector is None or not projector.selections:
            return []
        samples = self._questions.samples
        result: list[list[Selection]] = [[] for _ in range(max(samples) + 1)]
        for sample, selection in zip(samples, projector.selections, strict=True):
            result[sample].append(selection)
        return result

    @property
    def last_cuts(self) -> dict[int, list[Any]]:
        """Per cut decoder layer and prompt: (K,) int64 visual tokens that entered it."""
        decoder = self._parts.decoder
        return {} if decoder is None else dict(decoder.kept)

    def set_question(self, question: str | Sequence[str] | None) -> None:
        """Score relevance by this text from now on: one for all prompts, or one per prompt.

        None goes back to the text of the prompts.
        """
        self._questions.set_given(question)

    def _last_cut(self) -> list[list[Selection]]:
        cuts = self.last_cuts
        if not cuts:
            return []
        return [[Selection(kept_indices=kept, scores=None, order=kept)] for kept in cuts[max(cuts)]]


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
    embed_layer: int = -1,
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
        embed_layer: hidden state of the vision encoder that joint-space patches are taken from, -1
            for the last.
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
    host = _host(served, model)
    tokenizer = getattr(processor, "tokenizer", processor)
    embeddings = model.get_input_embeddings()
    tower = None if text_tower is None else load_tower(text_tower, embeddings, tokenizer)
    questions = Questions(tokenizer, host.placeholder_ids, embeddings, tower, text_needs(method))
    parts = assemble(
        Request(
            family=served,
            host=host,
            method=method,
            keep=keep,
            per_tile=per_tile,
            tower=tower,
            questions=questions,
            policy=position_policy,
            site=prune_site,
            attention_layer=attention_layer,
            embed_layer=embed_layer,
        )
    )
    handle = Handle(served, method, parts, questions)
    try:
        _install_calls(handle, host, parts.entrance, questions)
        parts.install(handle._installation)
    except BaseException:
        handle._installation.undo()
        raise
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


def _host(family: Family, model: Any) -> Host:
    try:
        return family.host(model)
    except AttributeError as error:
        raise ConfigError(
            f"{type(model).__name__} is not laid out like a {family.name} model of transformers 5"
            f" ({error}); check family=... and the installed release"
        ) from error


def _build(pruner: str | Pruner, options: dict[str, Any]) -> Pruner:
    if isinstance(pruner, str):
        return load(pruner, **options)
    if options:
        raise ConfigError(
            f"options {', '.join(sorted(options))} were given beside a built pruner; set them in"
            " edge_atp.pruning.load"
        )
    return pruner


def _install_calls(
    handle: Handle, host: Host, entrance: LanguageEntrance | None, questions: Questions
) -> None:
    """Learn the prompts of every call, in ``generate`` and in plain forwards."""
    installation = handle._installation
    in_generate = False

    def generate(original: Any, *args: Any, question: Any = None, **kwargs: Any) -> Any:
        nonlocal in_generate
        given = _arguments(original, args, kwargs)
        if handle._parts.decoder is not None:
            _refuse_chunks(given)
        ids = given.get("input_ids", given.get("inputs"))
        state = None if entrance is None else entrance.state(kwargs.get("past_key_values"))
        if entrance is not None and state is not None and ids is not None:
            entrance.new_tokens = _new_tokens(ids, kwargs.get("attention_mask"), state.seen)
            questions.set_prompt(ids[:, -entrance.new_tokens :])
            _hide_seen_images(kwargs, state.seen)
        else:
            questions.set_prompt(ids)
        in_generate = True
        try:
            with questions.given(question):
                return original(*args, **kwargs)
        finally:
            in_generate = False

    def refuse_labels(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("labels") is not None:
            raise ConfigError(
                "labels are not supported while visual tokens are pruned, because they count the"
                " full prompt; call edge_atp.hf.detach(model) before training"
            )

    def learn_prompt(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not in_generate:
            questions.set_prompt(_arguments(module.forward, args, kwargs).get("input_ids"))

    installation.wrap(host.model, "generate", generate)
    installation.before(host.model, refuse_labels)
    installation.before(host.inner, learn_prompt)


def _refuse_chunks(given: dict[str, Any]) -> None:
    config = given.get("generation_config")
    chunk = given.get("prefill_chunk_size", getattr(config, "prefill_chunk_size", None))
    if chunk is not None:
        raise ConfigError(
            f"prefill_chunk_size is {chunk}; methods inside the language model rank visual tokens"
            " by the end of the prompt, which an earlier chunk does not hold: set it to None"
        )


def _arguments(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call by name."""
    bound = inspect.signature(function).bind_partial(*args, **kwargs).arguments
    return {**bound, **bound.get("kwargs", {}), **bound.get("generate_kwargs", {})}


def _new_tokens(ids: Any, mask: Any, seen: int) -> int:
    """Tokens of a continued conversation that the cache has not seen.

    ``generate`` takes the whole conversation, or only its new part with a mask over the whole.
    """
    length: int = ids.shape[1]
    if mask is not None and mask.shape[1] != length:
        return length
    return length - seen


def _hide_seen_images(kwargs: dict[str, Any], seen: int) -> None:
    """Blank out the token types of images that the cache holds already.

    M-RoPE models look for new images behind the cache's length, which pruning made shorter.
    """
    types = kwargs.get("mm_token_type_ids")
    if types is not None and types.shape[1] > seen and not bool(types[:, seen:].any()):
        kwargs["mm_token_type_ids"] = types.new_zeros(types.shape)
