"""Answer a request with an exported engine or with a pruned Hugging Face model.

Imports nothing of lmms-eval; torch and transformers only for the Hugging Face model.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from edge_atp.budget import ratio_to_tokens
from edge_atp.config import PipelineConfig
from edge_atp.errors import ConfigError, InvalidQueryError
from edge_atp.evaluation.lmms_eval_plugin.requests import Request
from edge_atp.pipeline import Pipeline
from edge_atp.runtime.text import load_tokenizer
from edge_atp.types import Frame, Policy, PruneSpec, Query

_DEFAULT_NEW_TOKENS = 64


class Answerer(Protocol):
    """What both kinds of models do."""

    def answer(self, request: Request) -> str:
        """Generate greedily."""

    def loss(self, request: Request) -> tuple[float, bool]:
        """Mean negative log-likelihood of the continuation's tokens, and whether greedy decoding
        would have generated it."""


class EngineAnswerer:
    """An exported model directory.

    Args:
        model: directory or shipped name.
        method: pruning method; "" for the model's own, "none" for dense.
        keep: tokens per image (a whole number) or share of them (below 1); None for the model's.
        alpha: weight of the question; None for the model's own.
        engine, threads: backend.
    Raises:
        ConfigError: keep is no number of tokens and no share.
    """

    def __init__(
        self,
        model: str,
        method: str = "",
        keep: float | None = None,
        alpha: float | None = None,
        engine: str = "auto",
        threads: int = 0,
    ) -> None:
        config = PipelineConfig(
            model=model, engine=engine, num_threads=threads, max_prompt_chars=100_000
        )
        self._pipeline = Pipeline.load(config)
        self._prune = prune_spec(method, keep, alpha, self._pipeline.grid.num_patches)
        tokenizer = self._pipeline.engine.directory.file("tokenizer")
        self._tokenizer = load_tokenizer(tokenizer)

    def answer(self, request: Request) -> str:
        """Generate greedily; see ``Answerer``."""
        query = Query(
            request.text,
            max_new_tokens=request.max_new_tokens or _DEFAULT_NEW_TOKENS,
            prune=self._prune,
        )
        return request.cut(self._pipeline.answer(query, self._frames(request)).text)

    def loss(self, request: Request) -> tuple[float, bool]:
        """One forward pass per token of the continuation; see ``Answerer``."""
        engine = self._pipeline.engine
        query = Query(request.text, prune=self._prune)
        tokens = self._pipeline.visual_tokens(query, self._frames(request))
        sequence = engine.embed_prompt(request.text, tokens).inputs_embeds
        # The space between the prompt and an answer belongs to the answer's first token.
        token_ids = self._tokenizer.encode(f" {request.continuation}", add_special_tokens=False).ids
        losses, greedy = [], True
        for token in token_ids:
            logits = engine.last_logits(sequence).astype(np.float64).reshape(-1)
            shifted = logits - logits.max()
            losses.append(float(np.log(np.exp(shifted).sum()) - shifted[token]))
            greedy = greedy and int(logits.argmax()) == token
            sequence = np.concatenate([sequence, engine.embed_tokens([token])])
        return float(np.mean(losses)), greedy

    def close(self) -> None:
        """Release the model."""
        self._pipeline.close()

    def _frames(self, request: Request) -> list[Frame]:
        if not request.images:
            raise InvalidQueryError(
                "a question without an image: an exported engine answers about images; use model"
                " edge_atp_hf for tasks that mix in text alone"
            )
        return [Frame(np.asarray(image)) for image in request.images]


class HfAnswerer:
    """A Hugging Face checkpoint with ``edge_atp.hf`` attached.

    Args:
        pretrained: checkpoint folder or hub id.
        method: pruning method; "none" for the untouched model.
        keep: tokens per image (a whole number) or share of them (below 1); None for the method's.
        text_tower: text encoder that matches the vision encoder, for methods that read the
            question: a folder, or "open_clip:NAME/TAG".
        device, dtype: where and in what precision it runs.
        options: the method's own options.
    """

    def __init__(
        self,
        pretrained: str,
        method: str = "atp",
        keep: float | None = None,
        text_tower: str | None = None,
        device: str = "cuda",
        dtype: str = "auto",
        **options: Any,
    ) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from edge_atp.hf import attach

        self._torch = torch
        self._processor = AutoProcessor.from_pretrained(pretrained)
        self._model = AutoModelForImageTextToText.from_pretrained(pretrained, dtype=dtype)
        self._model = self._model.to(device).eval()
        self._handle = None
        if method != "none":
            budget = keep if keep is None or keep < 1 else int(keep)
            self._handle = attach(
                self._model, self._processor, method, keep=budget, text_tower=text_tower, **options
            )

    def answer(self, request: Request) -> str:
        """Generate greedily; see ``Answerer``."""
        inputs = self._inputs(self._prompt(request), request)
        self._set_question(request)
        with self._torch.inference_mode():
            tokens = self._model.generate(
                **inputs,
                max_new_tokens=request.max_new_tokens or _DEFAULT_NEW_TOKENS,
                do_sample=False,
            )
        new = tokens[0, inputs["input_ids"].shape[1] :]
        return request.cut(str(self._processor.decode(new, skip_special_tokens=True)))

    def loss(self, request: Request) -> tuple[float, bool]:
        """One forward pass; see ``Answerer``."""
        torch = self._torch
        prompt = self._prompt(request)
        length = self._inputs(prompt, request)["input_ids"].shape[1]
        inputs = self._inputs(f"{prompt} {request.continuation}", request)
        self._set_question(request)
        target = inputs["input_ids"][0, length:]
        with torch.inference_mode():
            # Pruning shortens what comes before, so positions are counted from the end.
            logits = self._model(**inputs).logits[0, -len(target) - 1 : -1].float()
        chosen = torch.log_softmax(logits, -1).gather(1, target[:, None])
        return float(-chosen.mean()), bool((logits.argmax(-1) == target).all())

    def _prompt(self, request: Request) -> str:
        images = [{"type": "image"} for _ in request.images]
        message = {
            "role": "user",
            "content": [*images, {"type": "text", "text": request.text}],
        }
        prompt: str = self._processor.apply_chat_template(
            [message], tokenize=False, add_generation_prompt=True
        )
        return prompt

    def _inputs(self, prompt: str, request: Request) -> Any:
        images = list(request.images) or None
        inputs = self._processor(text=[prompt], images=images, return_tensors="pt")
        inputs = inputs.to(self._model.device)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        return inputs

    def _set_question(self, request: Request) -> None:
        """Relevance is scored by the question, not by the candidate answer behind it."""
        if self._handle is not None:
            self._handle.set_question(request.text)


def prune_spec(method: str, keep: float | None, alpha: float | None, num_patches: int) -> PruneSpec:
    """The request for ``keep`` tokens, or their share where it is below 1.

    Raises:
        ConfigError: keep is not positive, or between whole numbers.
    """
    if method == "none":
        return PruneSpec(Policy.OFF)
    if keep is None:
        return PruneSpec(method=method, alpha=alpha)
    if keep <= 0 or (keep > 1 and keep != int(keep)):
        raise ConfigError(f"keep is {keep}; give a whole number of tokens, or a share below 1")
    tokens = ratio_to_tokens(keep, num_patches) if keep < 1 else int(keep)
    return PruneSpec(Policy.TOKEN_BUDGET, method=method, max_visual_tokens=tokens, alpha=alpha)
