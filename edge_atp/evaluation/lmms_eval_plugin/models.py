"""lmms-eval's model classes. Imported by lmms-eval alone, when one is chosen."""

from __future__ import annotations

from typing import Any

from lmms_eval.api.model import lmms
from rich.progress import track

from edge_atp.evaluation.lmms_eval_plugin.answerers import Answerer, EngineAnswerer, HfAnswerer
from edge_atp.evaluation.lmms_eval_plugin.requests import generation_request, likelihood_request


class _PrunedModel(lmms):  # type: ignore[misc]
    """What both models share: requests in, answers out, one at a time and in order."""

    is_simple = True
    answerer: Answerer

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Answers, in the order of the requests."""
        return [
            self.answerer.answer(generation_request(request.args, self.task_dict))
            for request in track(requests, description="answering")
        ]

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Mean loss of each continuation, and whether it is the greedy one.

        A loss and not a log-likelihood: lmms-eval takes the smallest of what models return here.
        """
        return [
            self.answerer.loss(likelihood_request(request.args, self.task_dict))
            for request in track(requests, description="scoring")
        ]

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Not supported."""
        raise NotImplementedError("edge_atp models answer single questions, not rounds of them")


class EdgeAtpEngine(_PrunedModel):
    """``--model edge_atp_engine --model_args model=DIR,method=atp,keep=64``.

    Args:
        model, method, keep, alpha, engine, threads: see ``EngineAnswerer``.
        batch_size, device, max_batch_size: lmms-eval always gives these; the engine answers one
            question at a time on the backend's device.
    """

    def __init__(
        self,
        model: str,
        batch_size: Any = 1,
        device: Any = None,
        max_batch_size: Any = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.answerer = EngineAnswerer(str(model), **options)


class EdgeAtpHf(_PrunedModel):
    """``--model edge_atp_hf --model_args pretrained=ID,method=divprune,keep=64``.

    Args:
        pretrained, method, keep, text_tower, dtype and the method's options: see ``HfAnswerer``.
        device: such as "cuda:0" or "cpu".
        batch_size, max_batch_size: lmms-eval always gives these; questions are answered one by one.
    """

    def __init__(
        self,
        pretrained: str,
        batch_size: Any = 1,
        device: str | None = None,
        max_batch_size: Any = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.answerer = HfAnswerer(str(pretrained), device=device or "cuda", **options)
