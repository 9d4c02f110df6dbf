"""The shipped weights, loaded by plain transformers and asked about a freshly rendered scene."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the checkpoint needs torch")
transformers = pytest.importorskip("transformers", reason="the checkpoint needs transformers")

from models.warehouse_tiny import render  # noqa: E402
from models.warehouse_tiny.coverage import patch_coverage  # noqa: E402
from models.warehouse_tiny.questions import questions_for  # noqa: E402
from models.warehouse_tiny.scene import sample_scene  # noqa: E402
from models.warehouse_tiny.tokenizer import PROMPT_TEMPLATE  # noqa: E402

WEIGHTS = Path(__file__).parents[2] / "models" / "warehouse_tiny" / "weights"
pytestmark = pytest.mark.skipif(
    not (WEIGHTS / "model.safetensors").exists(), reason="no trained weights in this checkout"
)


def answer(model, processor, image, question: str) -> str:
    text = PROMPT_TEMPLATE.format(question=question)
    inputs = processor(images=image, text=text, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    new = ids[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(new, skip_special_tokens=True).strip()


def test_short_answers_are_right_on_rendered_scenes() -> None:
    try:
        renderer = render.SceneRenderer(224, 224)
    except render.RendererUnavailableError as error:
        pytest.skip(f"no renderer: {error}")
    model = transformers.LlavaForConditionalGeneration.from_pretrained(
        WEIGHTS, dtype=torch.float32
    ).eval()
    processor = transformers.AutoProcessor.from_pretrained(WEIGHTS)
    right = asked = 0
    for seed in range(7000, 7004):
        state = sample_scene("test", seed)
        frame = renderer.render(state)
        for question in questions_for(state, patch_coverage(frame.entities), "test", seed):
            if question.family != "caption":
                asked += 1
                right += answer(model, processor, frame.image, question.text) == question.answer
    renderer.close()
    assert asked >= 40
    assert right / asked >= 0.85


def test_the_text_tower_shares_the_joint_space() -> None:
    from safetensors.torch import load_file

    folder = WEIGHTS / "text_tower"
    tower = transformers.CLIPTextModelWithProjection.from_pretrained(folder)
    extra = load_file(folder / "visual_projection.safetensors")
    assert extra["visual_projection.weight"].shape == (128, 192)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["where is the red box?", "where is the blue drum?", "find the red box"]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        embeds = tower.float()(inputs["input_ids"], inputs["attention_mask"]).text_embeds
    unit = torch.nn.functional.normalize(embeds, dim=-1)
    assert unit[0] @ unit[2] > unit[0] @ unit[1] + 0.1
