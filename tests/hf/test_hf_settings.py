from pathlib import Path

import hf_reference as ref
import hf_tiny as tiny
import pytest
import torch
import yaml
from transformers import CLIPImageProcessor, LlavaProcessor

import edge_atp.hf
from edge_atp.errors import ConfigError
from edge_atp.hf.registry import load_family
from edge_atp.hf.settings import ModelSettings

MODELS = Path(__file__).parents[2] / "models"
FILES = sorted(path for path in MODELS.glob("*.yaml") if path.stem != "warehouse_tiny")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_checkpoint_file_fits_its_family(path):
    settings = ModelSettings.from_yaml(path)
    family = load_family(settings.family)
    assert settings.name == path.stem
    assert settings.position_ids in family.policies
    assert 0 < settings.keep_ratio <= 1
    assert settings.text_tower
    assert not (family.resamples and settings.prune_site == "pre_projector")


def test_every_family_has_a_checkpoint_file():
    assert {ModelSettings.from_yaml(path).family for path in FILES} == set(edge_atp.hf.families())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint on disk: model, processor, text tower, and the file that names them."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model = tiny.llava()
    model.save_pretrained(folder / "vlm")
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16),
        tokenizer=tiny.TOKENIZER,
        patch_size=4,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(folder / "vlm")
    clip, tokenizer = tiny.clip()
    clip.save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    content = {
        "name": "tiny",
        "family": "llava",
        "checkpoint": "vlm",
        "text_tower": "clip",
        "vision_feature_layer": -2,
        "alpha": 0.3,
        "keep_ratio": 0.5,
        "prompt": "USER: <image>",
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
    return folder


def test_a_checkpoint_loads_through_from_pretrained(folder):
    settings = ModelSettings.from_yaml(folder / "tiny.yaml")
    model, processor = settings.load()
    image = torch.randint(0, 255, (3, 16, 16), dtype=torch.uint8)
    prompt = "USER: <image>\nis there a red box? ASSISTANT:"
    inputs = ref.text_inputs(batch := processor(images=image, text=prompt, return_tensors="pt")) | {
        "pixel_values": batch["pixel_values"]
    }
    handle = settings.attach(model, processor)
    got = ref.generate(model, inputs)
    assert handle.pruner.alpha == 0.3
    loaded = handle.last_selections[0][0]
    assert len(loaded.kept_indices) == 8
    edge_atp.hf.detach(model)

    original = tiny.llava()
    tower = tiny.clip()
    direct = edge_atp.hf.attach(original, processor, "atp", 8, text_tower=tower, alpha=0.3)
    assert torch.equal(ref.generate(original, inputs), got)
    torch.testing.assert_close(direct.last_selections[0][0].scores, loaded.scores)


def test_methods_inside_the_model_keep_their_own_schedule(folder):
    settings = ModelSettings.from_yaml(folder / "tiny.yaml")
    model, processor = settings.load()
    handle = settings.attach(model, processor, "fastv", layer=2)
    inputs = ref.text_inputs(tiny.prompts(["is there a red box?"]))
    ref.generate(model, {**inputs, "pixel_values": tiny.pixels(1)}, steps=1)
    assert len(handle.last_cuts[2][0]) == 8  # FastV drops half


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": 3}, r"unknown setting keep; known: name, family"),
        ({"family": None}, r"family missing"),
    ],
)
def test_a_wrong_file_names_the_field(tmp_path, change, message):
    content = {"name": "x", "family": "llava", "checkpoint": "y", **change}
    content = {key: value for key, value in content.items() if value is not None}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=message):
        ModelSettings.from_yaml(tmp_path / "x.yaml")


def test_a_wrong_layer_is_refused(folder):
    settings = ModelSettings.from_yaml(folder / "tiny.yaml")
    model = tiny.llava()
    model.config.vision_feature_layer = -1
    with pytest.raises(ConfigError, match=r"vision_feature_layer is -2 in the settings and -1"):
        settings.attach(model, tiny.TOKENIZER)
