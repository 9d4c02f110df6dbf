"""The pipeline's stages for methods that cut inside the vision encoder or the language model.

Such a method has chosen when an image is encoded (``edge_atp.encoding``), or chooses while the
prompt is prefilled: what it kept is known when the answer is there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_atp.answer_work import AnswerWork
from edge_atp.budget import Budget
from edge_atp.errors import InvalidQueryError
from edge_atp.pruning import Pruner
from edge_atp.pruning.base import InModelPruner
from edge_atp.runtime import in_llm
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.in_model import InModelRunner
from edge_atp.runtime.outputs import Prompt
from edge_atp.types import LayerCut, PatchGrid, Policy, Query, Selection


def in_model(pruner: Pruner) -> InModelPruner | None:
    """The method if it cuts inside the model, else None."""
    return pruner if isinstance(pruner, InModelPruner) else None


class CuttingStages:
    """Stages on one loaded engine.

    Args:
        grid: patches of one image.
    """

    def __init__(self, engine: Engine, grid: PatchGrid) -> None:
        self._engine = engine
        self._num_patches = grid.num_patches
        self._runner = InModelRunner(engine)

    def check(self, pruner: InModelPruner, query: Query, budget: Budget) -> None:
        """Refuse what cannot run, before any work and any graph is opened.

        Raises:
            InvalidQueryError: the budget or the conversation does not go with the method.
            ConfigError: its layers do not fit the model.
        """
        specs = query.prune_per_image or (query.prune,)
        asked = any(spec.policy is not Policy.NODE_DEFAULT for spec in specs)
        if asked and not in_llm.takes_budget(pruner.name):
            raise InvalidQueryError(
                f"prune: {pruner.name} drops every visual token at one layer; ask without a keep"
                " ratio or number of tokens"
            )
        if query.conversation_id and pruner.site == "in_llm":
            raise InvalidQueryError(
                f"prune.method: {pruner.name} ranks the visual tokens of one prompt, not of a"
                " conversation; leave conversation_id empty or choose another method"
            )
        self._runner.check(pruner, budget.num_kept(self._num_patches))

    def select(self, work: AnswerWork) -> list[Selection]:
        """What is left of each image where it enters the language model."""
        if work.pruned:
            return [_selection(image.place) for image in work.pruned]
        return [_selection(np.arange(self._num_patches)) for _ in work.encodings]

    def project(self, work: AnswerWork) -> list[NDArray[np.float32]]:
        """(K_i, H) projected tokens of the images that were cut in the encoder."""
        return [self._runner.project(image) for image in work.pruned]

    def prepare(self, work: AnswerWork, prompt: Prompt) -> Prompt:
        """The prompt with what the cuts inside the language model need."""
        assert work.cut is not None
        if work.cut.site == "in_llm":
            pairs = zip(work.budgets, work.selections, strict=False)
            work.num_kept = sum(budget.num_kept(self._num_patches) for budget, _ in pairs)
        if not work.pruned:
            return prompt
        work.clock.lap("prefill")
        prompt = self._runner.add_language_stage(prompt, work.cut, work.query.text, work.pruned)
        work.clock.lap("prune")
        return prompt

    def finish(self, work: AnswerWork) -> None:
        """Note what the cuts left: the selections, and the tokens by layer."""
        vision: dict[int, int] = {}
        for image in work.pruned:
            for layer, place in image.cuts.items():
                vision[layer] = vision.get(layer, 0) + len(place)
        cuts = [LayerCut("vision", layer, kept) for layer, kept in sorted(vision.items())]
        assert work.cut is not None
        if work.cut.site == "in_llm":
            kept = self._engine.kept_by_layer
            cuts += [LayerCut("language", layer, len(left)) for layer, left in kept.items()]
            if kept:
                work.selections = _left_of(work.selections, kept[max(kept)])
                work.num_left = self._engine.visual_tokens_left
        work.cuts = tuple(cuts)


def _selection(place: NDArray[np.int64]) -> Selection:
    return Selection(kept_indices=place, scores=None, order=place)


def _left_of(selections: list[Selection], kept: NDArray[np.int64]) -> list[Selection]:
    """Each image's part of ``kept``, indices into the visual tokens of the whole prompt."""
    result, start = [], 0
    for selection in selections:
        place = np.asarray(selection.kept_indices)
        own = kept[(kept >= start) & (kept < start + len(place))] - start
        result.append(_selection(place[own]))
        start += len(place)
    return result
