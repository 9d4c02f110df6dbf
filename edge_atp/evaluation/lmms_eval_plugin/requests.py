"""lmms-eval's requests as plain values. Imports nothing of lmms-eval.

A request's arguments are (context, generation options, doc_to_visual, doc_id, task, split) for
generation and (context, continuation or doc_to_target, doc_to_visual, doc_id, task, split) for
likelihoods; documents are looked up in ``task_dict[task][split][doc_id]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_atp.errors import InvalidQueryError

_PLACEHOLDER = "<image>"


@dataclass(frozen=True)
class Request:
    """One question.

    text: without image placeholders, which the model's own prompt adds.
    images: PIL images, RGB.
    max_new_tokens: longest answer; 0 where the task does not say.
    until: the answer ends before the first of these.
    continuation: text to score, for likelihoods.
    """

    text: str
    images: tuple[Any, ...]
    max_new_tokens: int = 0
    until: tuple[str, ...] = ()
    continuation: str = ""

    def cut(self, answer: str) -> str:
        """The answer up to the first stop string, stripped."""
        ends = [end for stop in self.until if stop and (end := answer.find(stop)) >= 0]
        return answer[: min(ends, default=len(answer))].strip()


def generation_request(arguments: tuple[Any, ...], task_dict: Mapping[str, Any]) -> Request:
    """A request of ``generate_until``.

    Raises:
        InvalidQueryError: the task wants sampling or beams, or its documents are no images.
    """
    context, options, doc_to_visual, doc_id, task, split = arguments
    if options.get("do_sample") or float(options.get("temperature") or 0.0) > 0.0:
        raise InvalidQueryError(
            f"task {task} asks for sampling; edge_atp models decode greedily: give"
            " --gen_kwargs temperature=0,do_sample=False"
        )
    if int(options.get("num_beams") or 1) > 1:
        raise InvalidQueryError(
            f"task {task} asks for num_beams {options['num_beams']}; give --gen_kwargs num_beams=1"
        )
    until = options.get("until") or ()
    return Request(
        text=_text(context),
        images=_images(doc_to_visual(task_dict[task][split][doc_id]), task),
        max_new_tokens=int(options.get("max_new_tokens") or 0),
        until=(until,) if isinstance(until, str) else tuple(until),
    )


def likelihood_request(arguments: tuple[Any, ...], task_dict: Mapping[str, Any]) -> Request:
    """A request of ``loglikelihood``.

    Raises:
        InvalidQueryError: the documents are no images.
    """
    context, target, doc_to_visual, doc_id, task, split = arguments
    document = task_dict[task][split][doc_id]
    continuation = target if isinstance(target, str) else str(target(document))
    return Request(
        text=_text(context),
        images=_images(doc_to_visual(document), task),
        continuation=continuation.strip(),
    )


def _text(context: str) -> str:
    return context.replace(_PLACEHOLDER, "").strip()


def _images(visuals: Any, task: str) -> tuple[Any, ...]:
    found = tuple(visuals or ())
    for visual in found:
        if not hasattr(visual, "convert"):
            raise InvalidQueryError(
                f"task {task} gives a {type(visual).__name__}; edge_atp models take images"
            )
    return tuple(visual.convert("RGB") for visual in found)
