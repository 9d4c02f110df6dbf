"""Windows of the text encoder and incremental detokenisation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.process_memory import read
from edge_atp.errors import ArtifactError
from edge_atp.runtime.manifest import PromptSpec, TextTowerSpec
from edge_atp.runtime.text import (
    IncrementalText,
    PromptTokenizer,
    TextTowerTokenizer,
    load_tokenizer,
    turn_template,
)


def byte_tokenizer() -> Tokenizer:
    """One token per byte: characters outside ASCII span several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<image>"])
    return tokenizer


@pytest.fixture
def prompt() -> PromptTokenizer:
    tokenizer = byte_tokenizer()
    spec = PromptSpec("{image}{question}", "<image>", tokenizer.token_to_id("<image>"), 1000)
    return PromptTokenizer(tokenizer, spec)


def test_no_half_characters_are_shown(prompt: PromptTokenizer) -> None:
    text = "kühl 箱 🙂"
    ids = prompt.encode_text(text).tolist()
    assert len(ids) > len(text)
    incremental = IncrementalText(prompt)
    shown = [t for n in range(1, len(ids) + 1) if (t := incremental.update(ids[:n])) is not None]
    assert shown[-1] == text
    assert all(text.startswith(part) for part in shown)
    assert all("\ufffd" not in part for part in shown)


def test_image_token_of_another_tokenizer_is_refused() -> None:
    spec = PromptSpec("{image}{question}", "<image>", 5, 1000)
    with pytest.raises(ArtifactError, match="image_token_id"):
        PromptTokenizer(byte_tokenizer(), spec).encode("hm", 1)


@pytest.mark.parametrize(("length", "count"), [(0, 1), (1, 1), (14, 1), (15, 2), (29, 3)])
def test_windows_cover_the_text_evenly(length: int, count: int) -> None:
    spec = TextTowerSpec(context_length=16, bos_token_id=300, eos_token_id=301, embed_dim=4)
    text = "".join(chr(ord("a") + i % 26) for i in range(length))
    windows = TextTowerTokenizer(byte_tokenizer(), spec).windows(text)
    assert len(windows) == count
    assert all(w.shape[1] <= 16 and w[0, 0] == 300 and w[0, -1] == 301 for w in windows)
    body = np.concatenate([w[0, 1:-1] for w in windows])
    np.testing.assert_array_equal(body, byte_tokenizer().encode(text).ids)
    sizes = [w.shape[1] for w in windows]
    assert max(sizes) - min(sizes) <= 1


def test_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(ArtifactError, match=r"tokenizer.json is no valid tokenizer"):
        load_tokenizer(path)


@pytest.mark.parametrize(
    ("template", "turn"),
    [
        ("USER: {image}\n{question} ASSISTANT:", "USER: {image}\n{question} ASSISTANT:"),
        (
            "A chat. The assistant is polite. USER: {image}\n{question} ASSISTANT:",
            "USER: {image}\n{question} ASSISTANT:",
        ),
        ("[INST] {image}\n{question} [/INST]", "[INST] {image}\n{question} [/INST]"),
        (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{image}\n{question}"
            "<|im_end|>\n<|im_start|>assistant\n",
            "<|im_start|>user\n{image}\n{question}<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("{question}\n{image}", "{question}\n{image}"),
    ],
)
def test_a_turn_starts_at_the_users_role(template: str, turn: str) -> None:
    assert turn_template(template) == turn


def test_turns_without_images_lose_the_image_line_and_the_start_token() -> None:
    tokenizer = byte_tokenizer()
    spec = PromptSpec(
        "hello U: {image}\n{question} A:", "<image>", tokenizer.token_to_id("<image>"), 1000
    )
    prompt = PromptTokenizer(tokenizer, spec, end_token_id=7)
    text = tokenizer.decode(prompt.encode_turn("why?", 0).ids.tolist())
    assert text == "U: why? A:"
    with_image = prompt.encode_turn("why?", 2)
    assert with_image.is_image.sum() == 2
    assert prompt.closed_answer((1, 2)).ids.tolist() == [1, 2, 7]
    own = PromptSpec(
        "U: {image}{question}",
        "<image>",
        spec.image_token_id,
        1000,
        turn_template="\nU: {image}{question}",
    )
    ids = PromptTokenizer(tokenizer, own).encode_turn("hm", 0).ids.tolist()
    assert tokenizer.decode(ids) == "\nU: hm"


def test_turn_template_needs_both_slots() -> None:
    with pytest.raises(ArtifactError, match=r"prompt.turn_template must contain \{image\}"):
        PromptSpec("{image}{question}", "<image>", 1, 10, turn_template="{question}")


def test_new_words_are_not_remembered_for_ever(tmp_path: Path) -> None:
    """The library keeps 10,000 of them by default, 0.4 kB each between everything else."""
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    if not hasattr(tokenizer.model, "_resize_cache"):
        pytest.skip("this tokenizers release cannot bound what it remembers")
    tokenizer.encode("warm")
    before = read().heap_used_mb
    if np.isnan(before):
        pytest.skip("the heap's size is not known without glibc 2.33")
    for number in range(6000):
        tokenizer.encode(f"is box {number:06d} on the shelf?")
    assert read().heap_used_mb - before < 1.0
