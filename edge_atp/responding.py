"""The language model's part of an answer: its prompt, and what it generates or chooses."""

from __future__ import annotations

from collections.abc import Callable

from edge_atp.answer_work import AnswerWork, Response
from edge_atp.config import PipelineConfig
from edge_atp.conversations import without_oldest
from edge_atp.errors import BudgetExceededError
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.outputs import Prompt
from edge_atp.runtime.prompt import Turn
from edge_atp.types import ConfidenceKind, Status

FINISHED = {"eos": Status.FINAL, "length": Status.TRUNCATED}
# Answers of a closed set with less than this share of the best one's probability are bounded
# from above, not computed: no probability moves by more than this.
_NEGLIGIBLE = 1e-7


def fit_prompt(
    engine: Engine, work: AnswerWork, limits: PipelineConfig, longest: int
) -> tuple[Prompt, tuple[Turn, ...]]:
    """The prompt and the turns it holds: the oldest go where they do not all fit.

    Args:
        limits: most turns and images of a conversation.
        longest: tokens of the answer to leave room for.
    Raises:
        BudgetExceededError: the question alone is too long.
    """
    turns = work.conversation.turns
    new_images = bool(work.images)
    while True:
        fewer = without_oldest(turns, new_images)
        images = len(work.images) + sum(len(turn.images) for turn in turns)
        if fewer is None or (len(turns) < limits.max_turns and images <= limits.max_images):
            try:
                prompt = engine.embed_prompt(
                    work.query.text, work.images, turns, keep_prefix=limits.reuse_prefix
                )
                left = engine.directory.manifest.llm.max_kv - len(prompt.inputs_embeds)
                if fewer is None or left >= longest:
                    return prompt, turns
            except BudgetExceededError:
                if fewer is None:
                    raise
        turns = fewer


def generate(
    engine: Engine,
    work: AnswerWork,
    prompt: Prompt,
    max_new_tokens: int,
    on_text: Callable[[str], None] | None,
) -> Response:
    """Decode greedily; the confidence is the mean probability of the tokens."""
    generation = engine.generate(
        prompt,
        max_new_tokens=max_new_tokens,
        cut=work.cut if work.num_kept else None,
        num_kept=work.num_kept,
        held=work.conversation.held,
        on_lap=work.clock.lap,
        on_prefill=work.prefilled,
        on_token=on_text,
        should_stop=work.stop,
    )
    status = FINISHED.get(generation.finish, Status.CANCELED)
    if status is Status.CANCELED and not generation.token_ids:
        return Response(status)
    return Response(
        status,
        generation.text,
        generation.token_ids,
        generation.mean_token_prob,
        ConfidenceKind.MEAN_TOKEN_PROB,
    )


def choose(
    engine: Engine, work: AnswerWork, prompt: Prompt, on_text: Callable[[str], None] | None
) -> Response:
    """The most probable answer of the closed set; its probability is the confidence."""
    scores = engine.score_choices(
        prompt,
        work.query.choices,
        negligible=_NEGLIGIBLE,
        cut=work.cut if work.num_kept else None,
        num_kept=work.num_kept,
        held=work.conversation.held,
        on_lap=work.clock.lap,
        on_prefill=work.prefilled,
        should_stop=work.stop,
    )
    if scores is None:
        return Response()
    best = scores.best
    if on_text:
        on_text(scores.choices[best])
    return Response(
        Status.FINAL,
        scores.choices[best],
        scores.token_ids[best],
        float(scores.probabilities[best]),
        ConfidenceKind.CHOICE_PROB,
        tuple(float(probability) for probability in scores.probabilities),
    )
