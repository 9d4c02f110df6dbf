import hf_tiny as tiny
import pytest
import torch

from edge_atp.hf.text.question import question_from_ids, question_from_text
from edge_atp.hf.text.tower import LanguageModelTower, load_tower, windows


@pytest.mark.parametrize(
    "prompt",
    [
        "USER: \nis there a red box? ASSISTANT:",
        "A chat.\nUSER: hello ASSISTANT: hi</s>USER: is there a red box? ASSISTANT:",
        "USER: is there a red box? ASSISTANT: yes there is",
        "<|im_start|>system\nHelp.<|im_end|>\n<|im_start|>user\nis there a red  box?<|im_end|>\n"
        "<|im_start|>assistant\n",
        "<s>[INST] \nis there a red box? [/INST]",
        "[INST] <<SYS>>\nYou are helpful.\n<</SYS>>\n\nis there a red box? [/INST]",
        "Question: is there a red box? Answer:",
        "### Human: is there a red box?### Assistant:",
        "User: is there a red box?<end_of_utterance>\nAssistant:",
        "<|start_header_id|>user<|end_header_id|>\n\nis there a red box?<|eot_id|>",
        "is there a red box?",
    ],
)
def test_the_last_user_turn_is_the_question(prompt):
    assert question_from_text(prompt) == "is there a red box?"


def test_placeholders_padding_and_special_tokens_are_no_words():
    prompt = tiny.prompts(["is there a red box?", "how many pallets are blue, left and right?"])
    ids = prompt["input_ids"]
    assert (ids[0] == 0).any()
    for row, want in zip(
        ids, ("is there a red box?", "how many pallets are blue, left and right?"), strict=True
    ):
        assert question_from_ids(row.tolist(), tiny.TOKENIZER, [tiny.IMAGE_ID]) == want


def test_a_prompt_without_a_template_is_the_question():
    ids = tiny.TOKENIZER("<s><image><image>which aisle is blocked?")["input_ids"]
    got = question_from_ids(ids, tiny.TOKENIZER, [tiny.IMAGE_ID])
    assert got == "which aisle is blocked?"


def test_long_texts_are_split_into_windows():
    assert windows([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]
    assert windows([], 75) == [[]]


def test_language_model_space_is_the_mean_embedding():
    embeddings = torch.nn.Embedding(tiny.VOCAB, 8)
    tower = load_tower("llm", embeddings, tiny.TOKENIZER)
    assert isinstance(tower, LanguageModelTower)
    encoding = tower.encode("a red box")
    ids = tiny.TOKENIZER("a red box", add_special_tokens=False)["input_ids"]
    assert torch.equal(encoding.embed, embeddings(torch.tensor(ids)).mean(0))
    assert "".join("a red box"[start:end] for start, end in encoding.spans) == "a red box"
