"""Cutting visual tokens between decoder layers.

Each scheduled layer gets fewer rows than the one before: hidden states, rotary angles and mask are
cut alike, and every KV cache layer holds exactly the rows its layer saw. Attention stays the
model's own; a method that scores by attention computes the rows it needs beside it.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch

from edge_atp.errors import ConfigError, InferenceError
from edge_atp.hf.family import Host, Tensor
from edge_atp.hf.hooks.attention_view import AttentionView, LayerInput
from edge_atp.hf.hooks.decoder_pass import LayerCut, Pass, Stage
from edge_atp.hf.hooks.installation import Installation
from edge_atp.hf.hooks.language import LanguageEntrance
from edge_atp.hf.hooks.masks import layer_mask
from edge_atp.hf.hooks.rows import RowCut


@dataclass(frozen=True)
class Kept:
    """What one cut leaves of a sample's visual tokens.

    indices: (K,) int64 into the visual rows that entered, ascending.
    extra: (C, H) rows that take the place of dropped ones, behind the kept; C at most the number
        dropped. None for none.
    """

    indices: Tensor
    extra: Tensor | None = None


class DecoderRule(ABC):
    """A method that cuts inside the language model.

    Class attribute:
        position_policy: default position-id policy of the method.
    """

    position_policy = "original"

    @abstractmethod
    def layers(self, num_layers: int) -> tuple[int, ...]:
        """0-based layers before which tokens are cut."""

    def taps(self, num_layers: int) -> tuple[int, ...]:
        """0-based layers whose attention inputs the rule wants to see."""
        return ()

    def start(self, view: AttentionView, embeds: Tensor) -> None:
        """A prompt enters the first layer: (B, m, H) input embeddings."""

    def passed(self, layer: int, view: AttentionView) -> None:
        """A tapped layer has run on a prompt; no rows were cut since."""

    @abstractmethod
    def choose(self, layer: int, view: AttentionView, sample: int, num_visual: int) -> Kept:
        """Which visual tokens of one sample enter ``layer``.

        Args:
            view: the states that enter the layer, and the tapped ones.
            num_visual: visual tokens of the sample before the first cut.
        """


class DecoderPruner:
    """Hooks on the decoder layers."""

    def __init__(
        self, host: Host, entrance: LanguageEntrance, rule: DecoderRule, position_policy: str
    ) -> None:
        self._host = host
        self._entrance = entrance
        self._rule = rule
        self._policy = position_policy
        count = len(host.layers)
        self._layers, self._taps = rule.layers(count), rule.taps(count)
        _check_layers(self._layers, self._taps, count)
        _check_attention(host)
        self._view = AttentionView(host)
        self._pass: Pass | None = None
        self._states: weakref.WeakKeyDictionary[Any, dict[int, LayerCut]]
        self._states = weakref.WeakKeyDictionary()
        # Per cut of the last prompt: per sample, the visual tokens that entered that layer.
        self.kept: dict[int, list[Tensor]] = {}

    def install(self, installation: Installation) -> None:
        """Register the hooks."""
        for index, layer in enumerate(self._host.layers):
            installation.before(layer, self._before_layer(index))
        for index in self._taps:
            installation.before(self._host.layers[index].self_attn, self._view.capture(index))

    def _before_layer(self, index: int) -> Any:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            states = args[0] if args else kwargs.pop("hidden_states")
            if index == 0:
                self._begin(states)
            run = self._running()
            if run.has_visual:
                if index - 1 in self._taps:
                    self._view.follow(run.visual, run.valid)
                    with torch.no_grad():
                        self._rule.passed(index - 1, self._view)
                if index in self._layers:
                    states = self._cut(index, states, kwargs)
            self._record(index, states, kwargs)
            return (states, *args[1:]), kwargs

        return hook

    def _begin(self, states: Tensor) -> None:
        step = self._entrance.step
        if step is None:
            raise InferenceError("the decoder ran without its language model")
        batch, rows = states.shape[:2]
        visual = step.visual
        if visual is None:
            if rows > 1:
                raise ConfigError(
                    "the prompt was given as inputs_embeds, which do not tell which rows are visual"
                    " tokens; give input_ids, or choose an interface-level method"
                )
            visual = torch.zeros_like(step.valid[:, -rows:])
        counts = visual.sum(1).tolist() if rows > 1 else []
        zeros = torch.zeros((batch, rows), dtype=torch.int64, device=states.device)
        self._pass = Pass(
            visual=visual,
            valid=step.valid[:, -rows:],
            origin=zeros + torch.arange(rows, device=states.device),
            place=visual.cumsum(1) - 1,
            shift=zeros,
            dropped=zeros[:, :1],
            cache=step.cache,
            counts=counts,
            past={} if step.cache is None else dict(self._states.get(step.cache, {})),
        )
        if self._pass.has_visual:
            self.kept = {}
            self._view.begin(self._pass.visual, self._pass.valid, step.cache, self._past)
            with torch.no_grad():
                self._rule.start(self._view, states)

    def _past(self, index: int) -> Tensor | None:
        """(B, held) validity of a cache layer's keys before this pass, None when it was empty."""
        past = self._running().past.get(index)
        return None if past is None else past.valid

    def _cut(self, index: int, states: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Drop rows in front of layer ``index``; returns the rows that enter it."""
        run = self._running()
        run.rotary = self._rotary(run, run.past.get(index), states, kwargs)
        self._view.enter(LayerInput(states, run.rotary), run.visual, run.valid)
        keep = torch.ones_like(run.visual)
        states, places = states.clone(), []
        for sample in range(len(keep)):
            rows = run.visual[sample].nonzero()[:, 0]
            if len(rows) == 0:
                places.append(rows)
                continue
            with torch.no_grad():
                kept = self._rule.choose(index, self._view, sample, run.counts[sample])
            keep[sample, rows] = False
            keep[sample, rows[kept.indices]] = True
            places.append(run.place[sample, rows[kept.indices]])
            if kept.extra is not None and len(kept.extra):
                # Extra tokens take the last dropped places, so that they stay behind the image's
                # rows and in front of the question.
                free = rows[~keep[sample, rows]][-len(kept.extra) :]
                states[sample, free] = kept.extra.to(states.dtype)
                keep[sample, free] = True
        self.kept[index] = places
        if index == max(self._layers):
            self._view.release()
        if bool(keep.all()):
            return states
        cut = RowCut.from_mask(keep)
        run.cut(cut, keep)
        return cut.rows(states)

    def _record(self, index: int, states: Tensor, kwargs: dict[str, Any]) -> None:
        """Give the layer its own mask and positions, and note what its cache will hold."""
        run = self._running()
        layers = None if run.cache is None else self._states.setdefault(run.cache, {})
        past = run.past.get(index)
        # Layers between two cuts share everything: build it once a stage.
        if run.stage is None or run.stage.past is not past or run.stage.valid is not run.valid:
            run.stage = self._stage(run, past, states, kwargs)
        stage = run.stage
        if layers is not None:
            layers[index] = stage.result
        if not stage.result.is_cut:
            return
        kwargs["attention_mask"] = stage.mask
        if stage.rotary is not None:
            # The angles carry the positions; gaps in the ids would read as packed sequences.
            kwargs["position_embeddings"], kwargs["position_ids"] = stage.rotary, None

    def _stage(
        self, run: Pass, past: LayerCut | None, states: Tensor, kwargs: dict[str, Any]
    ) -> Stage:
        """What the layers up to the next cut have in common."""
        if past is None:
            result = LayerCut(run.valid, run.dropped, run.is_cut)
        else:
            result = LayerCut(
                torch.cat((past.valid, run.valid), dim=1),
                past.dropped + run.dropped,
                past.is_cut or run.is_cut,
            )
        if not result.is_cut:
            return Stage(past, run.valid, result)
        config = self._host.language_model.config
        held = result.valid.shape[1] - states.shape[1]
        mask = layer_mask(config, states, result.valid, held)
        run.rotary = self._rotary(run, past, states, kwargs)
        return Stage(past, run.valid, result, mask, run.rotary)

    def _rotary(
        self, run: Pass, past: LayerCut | None, states: Tensor, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor] | None:
        """Angles of the rows in flight where a layer's cache holds ``past``."""
        rotary = run.rotary or kwargs.get("position_embeddings")
        is_cut = run.is_cut or (past is not None and past.is_cut)
        if rotary is None or self._policy != "compact" or not is_cut:
            return rotary
        before = run.shift if past is None else run.shift + past.dropped
        positions = kwargs["position_ids"].expand(len(states), -1).gather(1, run.origin)
        angles: tuple[Tensor, Tensor] = self._host.language_model.rotary_emb(
            states, (positions - before).clamp(min=0)
        )
        return angles

    def _running(self) -> Pass:
        if self._pass is None:
            raise InferenceError("decoder layers ran out of order while pruning was attached")
        return self._pass


def _check_layers(cuts: tuple[int, ...], taps: tuple[int, ...], count: int) -> None:
    wrong = sorted({layer for layer in (*cuts, *taps) if not 0 <= layer < count})
    if wrong:
        raise ConfigError(
            f"layers {', '.join(map(str, wrong))} do not exist: the language model has {count}"
            f" layers, 0 to {count - 1}; set the method's layers"
        )
    if 0 in cuts:
        raise ConfigError(
            "a cut before layer 0 is one in front of the language model; start at layer 1, or"
            " choose an interface-level method"
        )


def _check_attention(host: Host) -> None:
    config = host.language_model.config
    kinds = set(getattr(config, "layer_types", None) or [])
    if not kinds and getattr(config, "sliding_window", None):
        kinds = {"sliding_attention"}
    if kinds - {"full_attention"}:
        raise ConfigError(
            f"the language model has layers of type {', '.join(sorted(kinds))}; in-LLM methods"
            " need full attention in every layer, choose an interface-level method"
        )
