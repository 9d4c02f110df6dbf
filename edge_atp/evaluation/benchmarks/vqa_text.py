"""Answer normalisation of the VQA evaluation: punctuation, number words, articles, contractions.

Source: Antol et al. 2015 and the rules at visualqa.org/evaluation, as its reference evaluation
applies them (quirks included: they decide points).
"""

from __future__ import annotations

import re

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_NUMBERS = {
    **{word: str(value) for value, word in enumerate(_NUMBER_WORDS)},
    "none": "0",
    "ten": "10",
}
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
# The reference hands re.UNICODE (32) to the argument that bounds the number of replacements.
_MAX_PERIODS = 32

# Written forms that lost an apostrophe are given it back. "He'll", "we'd" and others are missing
# on purpose: without the apostrophe they are other words.
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'"]


_CONTRACTIONS = {
    **{lost: word for word in _CONTRACTED.split() for lost in _without_one_apostrophe(word)},
    "somebody'd": "somebodyd",  # the other way round in the reference
}


def normalise(answer: str) -> str:
    """An answer as the VQA evaluation compares it."""
    return _words(_punctuation(answer))


def tidy(answer: str) -> str:
    """Line breaks and tabs become spaces, the ends are stripped."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _punctuation(answer: str) -> str:
    """Remove a mark next to a space, or any in an answer with a number such as 1,000; otherwise
    put a space in its place. Apostrophes, colons and decimal points stay."""
    joined = _COMMA_IN_NUMBER.search(answer) is not None
    out = answer
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        out = out.replace(mark, "" if beside_space or joined else " ")
    return _PERIOD.sub("", out, count=_MAX_PERIODS)


def _words(answer: str) -> str:
    words = (_NUMBERS.get(word, word) for word in answer.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
