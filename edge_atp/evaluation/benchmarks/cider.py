"""CIDEr-D of captions against references, as in the COCO caption evaluation.

TF-IDF vectors of n-grams up to 4, document frequency counted over the images' references, cosine
with clipped counts, a Gaussian penalty on the difference of lengths (sigma 6), times 10.
Source: Vedantam et al. 2015, "CIDEr: Consensus-based Image Description Evaluation", sec. 4.2.

Tokens: the official evaluation runs the Stanford PTB tokeniser (Java) and drops punctuation. Here
its rules for captions are a regular expression: lower case, clitics split ("isn't" -> "is n't",
"man's" -> "man 's"), hyphenated words, numbers, abbreviations and titles whole, brackets written
"-lrb-", other punctuation dropped. It differs for emoticons, URLs, months, "'n'" and the like.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from edge_atp.errors import ShapeError

MAX_N = 4
SIGMA = 6.0

NGram = tuple[str, ...]

_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|m|d|ll|re|ve))\b")
# Words that the Treebank's rules split although no apostrophe does.
_SPLIT = {"cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na"}
_SPLIT_WORD = re.compile(rf"\b({'|'.join(_SPLIT)})\b")
# The reference looks for "-LRB-" among tokens that are lower case, so brackets stay tokens.
_BRACKETS = str.maketrans({"(": " -lrb- ", ")": " -rrb- ", "[": " -lsb- ", "]": " -rsb- "})
_TOKEN = re.compile(
    r"-[lr][rs]b-"
    r"|n't\b|'(?:s|m|d|ll|re|ve)\b"
    r"|(?:[a-z]\.){2,}|(?:st|mr|mrs|ms|dr|jr|sr|vs)\."  # abbreviations and titles
    r"|o'clock\b"
    r"|\d+(?:[.,:/-]\w+)*"
    r"|\w+(?:[-./&]\w+)*"
    r"|[$%&#@+*=/]"
)


def tokenise(caption: str) -> list[str]:
    """Words of a caption, lower case, without punctuation."""
    text = _CLITIC.sub(r" \1", caption.lower().replace("\u2019", "'").translate(_BRACKETS))
    return _TOKEN.findall(_SPLIT_WORD.sub(lambda match: _SPLIT[match[0]], text))


@dataclass(frozen=True)
class _Vector:
    """weights: per n, n-gram -> tf-idf. norms: per n. length: number of bigrams, which is what
    the reference evaluation calls the length of a caption."""

    weights: tuple[dict[NGram, float], ...]
    norms: tuple[float, ...]
    length: int


def cider_d(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each image; the score of a data set is the mean.

    Args:
        candidates: one caption per image.
        references: per image, at least one reference caption.
    Returns:
        Per image, 0 to 10. With a single image every idf is 0, and so is the score.
    Raises:
        ShapeError: lengths differ or an image has no reference.
    """
    if len(candidates) != len(references) or not all(references):
        raise ShapeError(
            f"{len(candidates)} candidates for {len(references)} images; every image needs one"
            " candidate and at least one reference"
        )
    cooked = [[_count(tokenise(text)) for text in texts] for texts in references]
    frequency: Counter[NGram] = Counter()
    for counts in cooked:
        frequency.update(set().union(*counts))
    log_images = math.log(len(candidates)) if candidates else 0.0
    scores = []
    for candidate, counts in zip(candidates, cooked, strict=True):
        vector = _vector(_count(tokenise(candidate)), frequency, log_images)
        total = sum(_similarity(vector, _vector(c, frequency, log_images)) for c in counts)
        scores.append(10.0 * total / len(counts))
    return scores


def _count(words: list[str]) -> Counter[NGram]:
    return Counter(
        tuple(words[start : start + n])
        for n in range(1, MAX_N + 1)
        for start in range(len(words) - n + 1)
    )


def _vector(counts: Counter[NGram], frequency: Counter[NGram], log_images: float) -> _Vector:
    weights: tuple[dict[NGram, float], ...] = tuple({} for _ in range(MAX_N))
    for ngram, count in counts.items():
        idf = log_images - math.log(max(1.0, frequency[ngram]))
        weights[len(ngram) - 1][ngram] = count * idf
    norms = tuple(math.sqrt(sum(w * w for w in of_n.values())) for of_n in weights)
    length = sum(count for ngram, count in counts.items() if len(ngram) == 2)
    return _Vector(weights, norms, length)


def _similarity(candidate: _Vector, reference: _Vector) -> float:
    """Mean over n of the clipped cosine, times the length penalty."""
    total = 0.0
    for n in range(MAX_N):
        theirs = reference.weights[n]
        dot = sum(
            min(weight, theirs.get(ngram, 0.0)) * theirs.get(ngram, 0.0)
            for ngram, weight in candidate.weights[n].items()
        )
        norm = candidate.norms[n] * reference.norms[n]
        total += dot / norm if norm else dot
    delta = candidate.length - reference.length
    return total / MAX_N * math.exp(-(delta**2) / (2.0 * SIGMA**2))
