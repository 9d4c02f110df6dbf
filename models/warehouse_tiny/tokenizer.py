"""One byte-level BPE tokenizer for the language model and the text tower.

Lower-cases its input, so capitals never matter. Trained on every training wording and a page of
plain English; any other text falls back to bytes. Special ids: 0 pad, 1 start, 2 image, 3 end
(end is not 2, because CLIP text models treat end id 2 as a legacy case and pool elsewhere).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

from models.warehouse_tiny import vocabulary as v
from models.warehouse_tiny import wordings as w

SPECIAL_TOKENS = ("<pad>", "<s>", "<image>", "</s>")
PAD_ID, BOS_ID, IMAGE_ID, EOS_ID = range(4)
VOCAB_SIZE = 1024

PROMPT_TEMPLATE = "USER: <image>\n{question} ASSISTANT:"
"""Text after the start token; the answer follows with a leading space and ends with ``</s>``."""

_PLAIN_ENGLISH = """
the quick brown fox jumps over the lazy dog and then it runs away from here to there because some
people want to know which one of them was first. when you ask a robot about something that it has
never heard of, it should still read every word: left, right, front, behind, above, below, near,
far, big, small, heavy, light, open, closed, full, old, new, good, bad, safe, unsafe, ready, done,
start, stop, pick, place, put, take, move, bring, give, push, pull, lift, drop, wait, help, check,
grey, gray, white, black, orange, brown, pink, wood, metal, plastic, paper, water, door, wall,
window, camera, battery, wheel, truck, forklift, worker, helmet, hand, bin, crate, carton, barrel,
container, package, parcel, aisle, row, column, corner, side, middle, end, next, last, between.
"""


def _corpus() -> Iterator[str]:
    """Every training wording with fields filled, every answer word, and plain English."""
    yield _PLAIN_ENGLISH
    shelves, numbers = v.SHELVES, [str(n) for n in range(1, 5)]
    ordinals = ("first", "second", "third", "fourth")
    nouns = (*v.KINDS, "object", "item", "thing")
    things = [f"{colour} {noun}" for colour in v.COLOURS for noun in nouns]
    fills = itertools.cycle(zip(itertools.cycle(shelves), things, itertools.cycle(numbers)))
    for template in itertools.chain(*w.TRAIN.values()):
        for text in w.expand(template) * 8:
            shelf, thing, number = next(fills)
            for place in w.PLACES:
                for phrase in w.expand(place):
                    filled = text.replace("{place}", phrase).format(
                        shelf=shelf,
                        n=number,
                        nth=ordinals[int(number) - 1],
                        thing=thing,
                        things=thing + "s",
                        colour=thing.split()[0],
                    )
                    yield filled
                    yield f" {filled}"
                if "{place}" not in text:
                    break
    for extra in (*w.PREFIXES, *w.SUFFIXES, *w.DISTRACTORS):
        yield from (extra, f" {extra}") * 50
    for word in (*v.HAZARDS, *v.KINDS, *nouns, "boxes", *map(str, range(13)), *ordinals):
        yield from (word, f" {word}", f" {word}s") * 100
    answer = "; ".join(f" {shelf} shelf: red box, empty, empty, none" for shelf in shelves)
    yield from (f"{answer}; gripper: nothing; floor: none. not found yes no user: assistant:",) * 99


def train_tokenizer() -> Tokenizer:
    """Train the tokenizer; the same code gives the same file."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS_ID)])
    return tokenizer


def text_tower_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """The same vocabulary with an end token appended, as CLIP pools there."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BOS_ID), ("</s>", EOS_ID)]
    )
    return copy
