"""The user's question, taken out of a tokenised prompt.

Prompts wrap the question in a chat template; the template's words would dominate a relevance
score. Known templates are recognised by their role markers; of a conversation, the last user turn
is the question. A prompt without markers is the question as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

# (start of a user turn, end of it), in any case, as some tokenizers lower it; the turn also ends
# with the text.
_ROLES = (
    (r"<\|im_start\|>\s*user", r"<\|im_end\|>"),
    (r"<\|start_header_id\|>\s*user\s*<\|end_header_id\|>", r"<\|eot_id\|>"),
    (r"\[INST\]", r"\[/INST\]"),
    (r"###\s*Human\s*:", r"###"),
    (r"\bUser\s*:", r"<end_of_utterance>|</s>|\bAssistant\s*:"),
    (r"\bQuestion\s*:", r"\bAnswer\s*:|\bShort answer\s*:"),
)
_SYSTEM = re.compile(r"<<SYS>>.*?<</SYS>>", re.DOTALL)


def question_from_text(text: str) -> str:
    """The last user turn of a prompt, white space collapsed."""
    text = _SYSTEM.sub(" ", text)
    for start, end in _ROLES:
        turns = re.findall(rf"{start}(.*?)(?={end}|\Z)", text, flags=re.DOTALL | re.IGNORECASE)
        if turns:
            text = turns[-1]
            break
    return " ".join(text.split())


def question_from_ids(ids: Sequence[int], tokenizer: Any, placeholders: Collection[int]) -> str:
    """The last user turn of a tokenised prompt.

    Args:
        ids: one sample's token ids, padding included.
        tokenizer: the processor's tokenizer.
        placeholders: ids that stand for images or videos.
    """
    dropped = set(placeholders)
    if tokenizer.pad_token_id is not None:
        dropped.add(tokenizer.pad_token_id)
    kept = [token for token in ids if token not in dropped]
    text = question_from_text(tokenizer.decode(kept, skip_special_tokens=False))
    # Whatever markers are left (start of text, vision brackets) are special tokens.
    for special in sorted(tokenizer.all_special_tokens, key=len, reverse=True):
        text = text.replace(special, " ")
    return " ".join(text.split())
