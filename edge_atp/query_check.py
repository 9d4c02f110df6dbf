"""What a question must be, whatever the model: refused before any work is spent on it."""

from __future__ import annotations

from dataclasses import fields

from edge_atp.config import PipelineConfig
from edge_atp.errors import InvalidQueryError
from edge_atp.types import Query

_MAX_ID_CHARS = 256
# As much as may be configured; a model's own cache may end before.
_MOST_NEW_TOKENS = next(
    int(f.metadata["high"]) for f in fields(PipelineConfig) if f.name == "max_new_tokens"
)


def check_query(query: Query, num_images: int, config: PipelineConfig) -> None:
    """Check text, lengths and counts of a question.

    Args:
        num_images: images handed in with it.
    Raises:
        InvalidQueryError: names the field, its value and the limit.
    """
    if not query.text.strip():
        raise InvalidQueryError("text is empty; ask a question")
    if len(query.text) > config.max_prompt_chars:
        raise InvalidQueryError(
            f"text has {len(query.text)} characters; at most {config.max_prompt_chars}"
            " (max_prompt_chars)"
        )
    if not 0 <= query.max_new_tokens <= _MOST_NEW_TOKENS:
        raise InvalidQueryError(
            f"max_new_tokens is {query.max_new_tokens}; 1 to {_MOST_NEW_TOKENS}, or 0 for the"
            " default"
        )
    if len(query.conversation_id) > _MAX_ID_CHARS:
        raise InvalidQueryError(
            f"conversation_id has {len(query.conversation_id)} characters; at most {_MAX_ID_CHARS}"
        )
    if num_images > config.max_images:
        raise InvalidQueryError(
            f"the question comes with {num_images} images; at most {config.max_images} (max_images)"
        )
    if query.prune_per_image:
        _check_per_image(query, num_images)
    if query.choices:
        _check_choices(query.choices, config)


def _check_per_image(query: Query, num_images: int) -> None:
    count = len(query.prune_per_image)
    if count != num_images:
        raise InvalidQueryError(
            f"prune_per_image has {count} entries for {num_images} images; give one for each, or"
            " prune alone for all"
        )
    methods = sorted({spec.method for spec in query.prune_per_image})
    if len(methods) > 1:
        raise InvalidQueryError(
            f"prune_per_image names several methods ({', '.join(map(repr, methods))}); one answer"
            " has one method, with a budget for each image"
        )


def _check_choices(choices: tuple[str, ...], config: PipelineConfig) -> None:
    if not 2 <= len(choices) <= config.max_choices:
        raise InvalidQueryError(
            f"choices has {len(choices)} entries; give 2 to {config.max_choices} (max_choices)"
        )
    for number, choice in enumerate(choices):
        if len(choice) > config.max_choice_chars:
            raise InvalidQueryError(
                f"choices[{number}] has {len(choice)} characters; at most"
                f" {config.max_choice_chars} (max_choice_chars)"
            )
