from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
transformers = pytest.importorskip("transformers", reason="the model is a transformers model")

from flat_scenes import flat_coverage  # noqa: E402

from models.warehouse_tiny import tokenizer as tok  # noqa: E402
from models.warehouse_tiny.decoder import run_packed  # noqa: E402
from models.warehouse_tiny.encoder import encode_image, encode_text, normalise  # noqa: E402
from models.warehouse_tiny.model import (  # noqa: E402
    ModelConfig,
    build_model,
    build_processor,
    load_checkpoint,
    save_checkpoint,
)
from models.warehouse_tiny.packing import QuestionTokenizer, pack  # noqa: E402
from models.warehouse_tiny.questions import questions_for  # noqa: E402
from models.warehouse_tiny.scene import sample_scene  # noqa: E402
from models.warehouse_tiny.selection import atp_scores, min_max, top_k  # noqa: E402


@pytest.fixture(scope="module")
def model():
    return build_model(0).eval()


@pytest.fixture(scope="module")
def question_tokenizer() -> QuestionTokenizer:
    return QuestionTokenizer(tok.train_tokenizer())


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"llm_width is 250; make it a multiple of llm_heads"):
        ModelConfig(llm_width=250)


@torch.no_grad()
def test_vision_pass_equals_plain_transformers(model) -> None:
    pixels = normalise(torch.from_numpy(picture()[None]))
    plain = model.llava.model.vision_tower(pixels, output_hidden_states=True)
    ours = encode_image(model, pixels)
    torch.testing.assert_close(ours.patch_features, plain.hidden_states[-2][:, 1:])
    joint = model.visual_projection(model.vision.post_layernorm(plain.hidden_states[-1]))
    joint = torch.nn.functional.normalize(joint, dim=-1)
    torch.testing.assert_close(ours.patch_embeds, joint[:, 1:])
    torch.testing.assert_close(ours.image_embeds, joint[:, 0])


@torch.no_grad()
def test_cls_attention_is_that_of_the_consumed_layer(model) -> None:
    tower = model.llava.model.vision_tower
    tower.set_attn_implementation("eager")
    pixels = normalise(torch.from_numpy(picture()[None]))
    plain = tower(pixels, output_attentions=True).attentions[-2][:, :, 0, 1:].mean(1)
    ours = encode_image(model, pixels).cls_log_attention.exp()
    torch.testing.assert_close(ours, plain / plain.sum(-1, keepdim=True))


@torch.no_grad()
def test_dropped_patches_change_nothing_but_what_they_feed(model) -> None:
    pixels = normalise(torch.from_numpy(picture()[None]))
    everything = torch.arange(256)[None]
    torch.testing.assert_close(
        encode_image(model, pixels, everything).patch_features,
        encode_image(model, pixels).patch_features,
    )
    assert encode_image(model, pixels, everything[:, ::2]).patch_features.shape == (1, 128, 192)


@torch.no_grad()
def test_packed_questions_equal_plain_transformers_one_by_one(model, question_tokenizer) -> None:
    state, image = sample_scene("test", 3), picture()
    coverage = flat_coverage(state)
    asked = [
        question_tokenizer.ask(question, coverage)
        for question in questions_for(state, coverage, "test", 3)
    ]
    output = encode_image(model, normalise(torch.from_numpy(image[None])))
    kept = torch.arange(256)[None]
    packed = pack(model, [asked], output.patch_features, kept, question_tokenizer.prefix_ids)
    logits, _ = run_packed(model, packed.rows)
    processor = build_processor(tok.train_tokenizer())
    for index in (0, 4, len(asked) - 1):
        item = asked[index]
        text = tok.PROMPT_TEMPLATE.format(question=item.question.text)
        inputs = processor(images=image, text=text, return_tensors="pt")
        ids = torch.cat([inputs["input_ids"], torch.tensor([item.answer_ids[:-1]])], 1)
        plain = model.llava(
            input_ids=ids, pixel_values=inputs["pixel_values"], attention_mask=torch.ones_like(ids)
        ).logits[0, -len(item.answer_ids) :]
        ours = logits[0][packed.question_index[0] == index]
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)


def test_the_chat_template_writes_the_prompt_template() -> None:
    processor = build_processor(tok.train_tokenizer())
    content = [{"type": "image"}, {"type": "text", "text": "where is the red box?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    assert text == tok.PROMPT_TEMPLATE.format(question="where is the red box?")


def test_answers_and_any_other_text_survive_the_tokenizer() -> None:
    tokenizer = tok.train_tokenizer()
    for text in (" middle shelf, slot 3", " 12", "größe 7?", "naïve \U0001f600"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == text.lower()
    assert tokenizer.token_to_id("</s>") == tok.EOS_ID != 2


def test_a_saved_checkpoint_loads_with_plain_transformers(tmp_path: Path, model) -> None:
    save_checkpoint(model, tmp_path, torch.float32)
    llava = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    inputs = processor(
        images=picture(), text="USER: <image>\nhello ASSISTANT:", return_tensors="pt"
    )
    assert inputs["input_ids"][0, 0] == tok.BOS_ID
    assert (inputs["input_ids"] == tok.IMAGE_ID).sum() == 256
    answer = llava.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert answer.shape[1] <= inputs["input_ids"].shape[1] + 2
    folder = tmp_path / "text_tower"
    tower = transformers.CLIPTextModelWithProjection.from_pretrained(folder).eval()
    encoded = transformers.AutoTokenizer.from_pretrained(folder)("hello", return_tensors="pt")
    with torch.no_grad():
        plain = tower(encoded["input_ids"], encoded["attention_mask"]).text_embeds
        ours = encode_text(model, encoded["input_ids"], encoded["attention_mask"])
    torch.testing.assert_close(torch.nn.functional.normalize(plain, dim=-1), ours)
    again = load_checkpoint(tmp_path)
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], msg=name)


def test_selection_follows_the_fusion_rule() -> None:
    relevance = torch.tensor([[0.0, 1.0, 0.5, 0.5]])
    attention = torch.tensor([[4.0, 0.0, 2.0, 2.0]])
    torch.testing.assert_close(
        atp_scores(relevance, attention, 0.25), torch.tensor([[0.75, 0.25, 0.5, 0.5]])
    )
    assert min_max(torch.ones(1, 3)).tolist() == [[0.0, 0.0, 0.0]]
    assert top_k(torch.tensor([[1.0, 3.0, 3.0, 3.0]]), 2).tolist() == [[1, 2]]
