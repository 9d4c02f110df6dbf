"""One question on its way through the stages, and the answer that is made of it in the end.

Knows nothing of engines; the stages themselves are in ``edge_atp.pipeline``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_atp.budget import Budget
from edge_atp.conversations import Conversation
from edge_atp.encoding import Encoding
from edge_atp.interruption import Interruption
from edge_atp.mask import to_bool
from edge_atp.pruning.base import InModelPruner
from edge_atp.runtime.in_vit.encoder import PrunedVision
from edge_atp.runtime.outputs import Prompt
from edge_atp.runtime.prompt import Turn
from edge_atp.timing import StageClock
from edge_atp.types import (
    Answer,
    ConfidenceKind,
    Frame,
    LayerCut,
    PatchGrid,
    PatchMask,
    Query,
    Reuse,
    Selection,
    Status,
    TokenCounts,
)


@dataclass(frozen=True)
class Response:
    """What the language model said."""

    status: Status = Status.CANCELED
    text: str = ""
    token_ids: tuple[int, ...] = ()
    confidence: float | None = None
    confidence_kind: ConfidenceKind = ConfidenceKind.NONE
    choice_probs: tuple[float, ...] = ()


@dataclass
class AnswerWork:
    """One question on its way through the stages; what has not been reached is empty.

    images: (K_i, H) projected tokens of each new image.
    turns: the conversation before it that the prompt holds.
    text_known: the question's embedding was remembered.
    cut: the pruning method where it cuts inside the model.
    num_kept, num_left: visual tokens it is to leave in the language model, and did leave.
    """

    query: Query
    frames: Sequence[Frame | Encoding]
    clock: StageClock
    stop: Interruption
    budgets: list[Budget]
    conversation: Conversation
    encodings: list[Encoding] = field(default_factory=list)
    num_encoded: int = 0
    text_known: bool = False
    selections: list[Selection] = field(default_factory=list)
    images: list[NDArray[np.float32]] = field(default_factory=list)
    turns: tuple[Turn, ...] = ()
    prompt: Prompt | None = None
    response: Response = Response()
    cut: InModelPruner | None = None
    num_kept: int | None = None
    num_left: int | None = None
    cuts: tuple[LayerCut, ...] = ()
    kv_bytes: int = 0

    @property
    def pruned(self) -> list[PrunedVision]:
        """The images that ``cut`` has cut in the vision encoder."""
        return [encoding.pruned for encoding in self.encodings if encoding.pruned]

    @property
    def method(self) -> str:
        """Names of the methods that ran, each once, in the order of the images, joined by commas;
        "none" for images that keep every token unasked."""
        if self.cut and self.cut.site == "in_llm":  # it ranks the tokens of all images together
            return self.cut.name
        return ",".join(dict.fromkeys(budget.method for budget in self.budgets))

    def prefilled(self) -> None:
        """The logits of the prompt are there."""
        self.clock.lap("prefill")
        self.clock.first_token()

    def masks(self, grid: PatchGrid) -> tuple[PatchMask, ...]:
        """What the model saw of the newest images; empty before selection."""
        if not self.frames:
            return self.conversation.masks
        return tuple(
            PatchMask(
                frame=encoding.frame,
                grid=grid,
                region=encoding.region,
                kept=to_bool(np.asarray(selection.kept_indices), grid.num_patches),
                scores=None if selection.scores is None else np.asarray(selection.scores),
            )
            for encoding, selection in zip(self.encodings, self.selections, strict=False)
        )

    def answer(self, grid: PatchGrid, model_id: str, reused_tokens: int) -> Answer:
        """The answer, complete or ended early.

        Args:
            reused_tokens: tokens of the prompt whose keys and values were there.
        """
        prompt, response = self.prompt, self.response
        earlier = sum(len(turn.images) for turn in self.turns)
        return Answer(
            text=response.text,
            query_id=self.query.query_id,
            status=self.stop.status or response.status,
            masks=self.masks(grid),
            tokens=TokenCounts(
                visual_total=grid.num_patches * (earlier + len(self.images)),
                visual_kept=self._visual_kept(),
                prompt_text=prompt.num_text_tokens if prompt else 0,
                generated=len(response.token_ids),
            ),
            times=self.clock.times(),
            confidence=response.confidence,
            method=self.method,
            model_id=model_id,
            token_ids=response.token_ids,
            confidence_kind=response.confidence_kind,
            choice_probs=response.choice_probs,
            reused=Reuse(
                images=earlier + len(self.encodings) - self.num_encoded,
                text_embed=self.text_known,
                kv_tokens=reused_tokens if prompt else 0,
            ),
            turn=self.conversation.num_turns + 1 if self.query.conversation_id else 0,
            cuts=self.cuts,
            kv_bytes=self.kv_bytes,
        )

    def _visual_kept(self) -> int:
        if self.num_left is not None:
            return self.num_left
        return self.prompt.num_visual_tokens if self.prompt else 0
