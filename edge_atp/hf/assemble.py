"""From a method, a model and the caller's choices to the hooks that realise them."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from edge_atp.errors import ConfigError, MissingSignalError
from edge_atp.hf.budget import Keep
from edge_atp.hf.family import Family, Host
from edge_atp.hf.hooks.decoder import DecoderPruner, DecoderRule
from edge_atp.hf.hooks.encoder import EncoderPruner
from edge_atp.hf.hooks.installation import Installation
from edge_atp.hf.hooks.language import LanguageEntrance
from edge_atp.hf.hooks.memory import MemoryCut
from edge_atp.hf.hooks.packed import PackedCut
from edge_atp.hf.hooks.projector import Chooser, ProjectorCut
from edge_atp.hf.hooks.questions import Questions
from edge_atp.hf.hooks.selection import MethodChooser
from edge_atp.hf.hooks.signals import SignalSource
from edge_atp.hf.hooks.vision_tap import VisionTap
from edge_atp.hf.text.tower import TextTower
from edge_atp.pruning import Pruner

# Share kept by interface-level methods when the caller names no budget.
DEFAULT_KEEP = 0.25

_SITES = ("pre_projector", "post_projector")
_JOINT = frozenset({"text_embed", "clip_text_tokens", "patch_embeds"})


@dataclass(frozen=True)
class Request:
    """What the caller of ``attach`` asked for, resolved against the model.

    keep: None where the method follows its own schedule.
    policy: position policy asked for, None for the default.
    site: prune site asked for, None for the default.
    """

    family: Family
    host: Host
    method: Pruner
    keep: int | float | None
    per_tile: bool
    tower: TextTower | None
    questions: Questions
    policy: str | None
    site: str | None
    attention_layer: int | None
    embed_layer: int = -1

    @property
    def budget(self) -> Keep | None:
        """The keep budget, None for the method's own."""
        return None if self.keep is None else Keep(self.keep, self.per_tile)

    def tap(self) -> VisionTap:
        """A tap on the vision encoder at the layer asked for."""
        layer = self.attention_layer
        if layer is None:
            layer = getattr(self.method, "attention_layer", None)
        return VisionTap(self.host.vision, layer, self.embed_layer)


@dataclass(frozen=True)
class Parts:
    """The hooks of one attached method, and the position policy they follow."""

    policy: str
    entrance: LanguageEntrance | None
    projector: ProjectorCut | PackedCut | MemoryCut | None = None
    decoder: DecoderPruner | None = None
    encoder: tuple[VisionTap | EncoderPruner, ...] = ()

    def install(self, installation: Installation) -> None:
        """Register all hooks."""
        for part in (*self.encoder, self.projector, self.entrance, self.decoder):
            if part is not None:
                part.install(installation)


def wanted_signals(method: Pruner) -> frozenset[str]:
    """Signals the method can use."""
    return frozenset(method.needs).union(*method.needs_one_of)


def assemble(request: Request) -> Parts:
    """Build the hooks of the method's site.

    Raises:
        ConfigError: the method's site or options do not fit the model.
        MissingSignalError: the model or the call lacks what the method scores by.
    """
    if request.method.site == "post_encoder":
        return _behind_encoder(request)
    if not request.family.in_llm and request.method.site == "in_llm":
        raise ConfigError(
            f"{request.method.name} cuts visual tokens inside the language model, where"
            f" {request.family.name} has none of them; choose an interface-level method"
        )
    module = importlib.import_module(f"edge_atp.hf.methods.{request.method.name}")
    if hasattr(module, "assemble"):
        parts: Parts = module.assemble(request)
        return parts
    rule = module.Rule(request.method, request.budget)
    if request.method.site == "in_encoder":
        pruner = EncoderPruner(request.family, request.host, rule, request.questions.notice)
        return with_chooser(request, pruner, pruner)
    return with_rule(request, rule)


def with_chooser(request: Request, chooser: Chooser, *encoder: VisionTap | EncoderPruner) -> Parts:
    """Tokens leave before the language model."""
    policy = _policy(request, request.family.position_policy)
    if request.family.memory:
        return Parts(policy, None, MemoryCut(request.host, chooser), encoder=encoder)
    return Parts(
        policy=policy,
        entrance=LanguageEntrance(request.host, policy),
        projector=ProjectorCut(request.family, request.host, chooser),
        encoder=encoder,
    )


def with_rule(request: Request, rule: DecoderRule) -> Parts:
    """Tokens leave between decoder layers."""
    policy = _policy(request, rule.position_policy)
    entrance = LanguageEntrance(request.host, policy)
    decoder = DecoderPruner(request.host, entrance, rule, policy)
    return Parts(policy=policy, entrance=entrance, decoder=decoder)


def _policy(request: Request, default: str) -> str:
    family, policy = request.family, request.policy
    if policy is None:
        return default if default in family.policies else family.position_policy
    if policy not in family.policies:
        raise ConfigError(
            f"position_policy is {policy!r}; {family.name} supports {', '.join(family.policies)}"
        )
    return policy


def _behind_encoder(request: Request) -> Parts:
    method = request.method
    _check_signals(request)
    tap = request.tap()
    source = SignalSource(
        family=request.family,
        host=request.host,
        tap=tap,
        text_tower=request.tower,
        needs=wanted_signals(method),
        relevance_source=getattr(method, "relevance_source", "raw"),
        mean_keys=bool(getattr(method, "mean_keys", False)),
    )
    budget = request.budget or Keep(DEFAULT_KEEP, request.per_tile)
    before = _before_projector(request)
    if request.family.resamples:
        policy = _policy(request, request.family.position_policy)
        cut = PackedCut(
            request.family, request.host, method, budget, source, request.questions.lookup
        )
        entrance = LanguageEntrance(request.host, policy)
        return Parts(policy=policy, entrance=entrance, projector=cut, encoder=(tap,))
    chooser = MethodChooser(method, budget, source, request.questions.lookup, before)
    return with_chooser(request, chooser, tap)


def _check_signals(request: Request) -> None:
    """Fail at attach time for what can be known then."""
    method, vision = request.method, request.host.vision
    if "cls_attention" in method.needs and not vision.has_cls:
        raise MissingSignalError(
            f"{method.name} needs cls_attention, but {type(vision.module).__name__} has no CLS"
            " token; choose a method that works with received attention (atp) or without attention"
            " (divprune, trimtokenator)"
        )
    joint = _JOINT & set(method.needs)
    if joint and request.tower is None:
        raise MissingSignalError(
            f"{method.name} needs {', '.join(sorted(joint))}: attach with text_tower=..., the text"
            " encoder that was trained with this vision encoder (see models/*.yaml), or 'llm'"
        )


def _before_projector(request: Request) -> bool:
    method, site, tower = request.method, request.site, request.tower
    if site is not None and site not in _SITES:
        raise ConfigError(f"prune_site is {site!r}; choose one of {', '.join(_SITES)}")
    projected = "image_embeds" in method.needs
    if tower is not None and tower.in_language_model:
        projected = projected or "patch_embeds" in method.needs
    if request.family.resamples and site == "pre_projector":
        raise ConfigError(
            f"{request.family.name} resamples tokens behind the projector, which needs all of them;"
            " prune_site must be 'post_projector'"
        )
    if projected and request.family.memory:
        raise MissingSignalError(
            f"{method.name} compares tokens in the language model's space, which"
            f" {request.family.name}'s patches never enter; choose atp, cls_topk or spatial"
        )
    if projected and site == "pre_projector":
        raise ConfigError(
            f"{method.name} compares projected tokens; prune_site must be 'post_projector'"
        )
    return not projected and site != "post_projector"


def text_needs(method: Pruner) -> frozenset[str]:
    """Which embeddings of the question the method uses."""
    return wanted_signals(method) & {"text_embed", "clip_text_tokens", "text_tokens"}
