"""Models for lmms-eval: requests, and the same answers from an engine and a Hugging Face model."""

from importlib.metadata import entry_points

import numpy as np
import pytest

from edge_atp.errors import ConfigError, InvalidQueryError
from edge_atp.evaluation.lmms_eval_plugin.answerers import EngineAnswerer, HfAnswerer, prune_spec
from edge_atp.evaluation.lmms_eval_plugin.requests import (
    Request,
    generation_request,
    likelihood_request,
)
from edge_atp.types import Policy, PruneSpec

CHAT_TEMPLATE = (
    "{% for message in messages %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %} ASSISTANT:{% endfor %}"
)


def picture(seed: int = 0):
    image = pytest.importorskip("PIL.Image", reason="lmms-eval hands over Pillow images")
    pixels = np.random.default_rng(seed).integers(0, 255, (28, 28, 3)).astype(np.uint8)
    return image.fromarray(pixels)


@pytest.fixture
def documents():
    return {"pope": {"test": [{"image": picture(), "answer": "yes"}, {"image": picture(1)}]}}


def to_visual(document):
    return [document["image"]]


def arguments(options=None, doc_id=0):
    return ("<image>\nis there a box? ", options or {}, to_visual, doc_id, "pope", "test")


def test_a_generation_request_is_unpacked(documents):
    options = {"max_new_tokens": 8, "temperature": 0, "until": ["\n\n", "."]}
    request = generation_request(arguments(options), documents)
    assert request.text == "is there a box?"
    assert request.max_new_tokens == 8
    assert request.images[0].size == (28, 28)
    assert request.cut(" yes. it is") == "yes"
    assert request.cut(" no") == "no"
    assert generation_request(arguments({"until": "\n"}), documents).until == ("\n",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.7}, "asks for sampling"),
        ({"do_sample": True}, "asks for sampling"),
        ({"num_beams": 4}, "num_beams 4"),
    ],
)
def test_what_greedy_decoding_cannot_do_is_refused(documents, options, message):
    with pytest.raises(InvalidQueryError, match=message):
        generation_request(arguments(options), documents)


def test_videos_are_refused(documents):
    documents["pope"]["test"][0]["image"] = "clip.mp4"
    with pytest.raises(InvalidQueryError, match="task pope gives a str"):
        generation_request(arguments(), documents)


def test_a_likelihood_request_takes_text_or_a_function(documents):
    context, _, visual, doc_id, task, split = arguments()
    given = (context, " yes", visual, doc_id, task, split)
    assert likelihood_request(given, documents).continuation == "yes"
    computed = (context, lambda document: document["answer"], visual, doc_id, task, split)
    assert likelihood_request(computed, documents).continuation == "yes"


def test_keep_is_tokens_or_a_share():
    assert prune_spec("none", 8, None, 16) == PruneSpec(Policy.OFF)
    assert prune_spec("atp", 0.25, None, 16).max_visual_tokens == 4
    assert prune_spec("atp", 8, 0.5, 16).max_visual_tokens == 8
    assert prune_spec("", None, None, 16) == PruneSpec()
    with pytest.raises(ConfigError, match=r"keep is 8.5"):
        prune_spec("atp", 8.5, None, 16)


@pytest.fixture(scope="session")
def checkpoint(tiny_model):
    """The checkpoint that ``tiny_model`` was exported from, with a processor."""
    transformers = pytest.importorskip("transformers", reason="needs the `export` extra")
    folder = tiny_model.parent / "llava"
    transformers.LlavaProcessor(
        transformers.CLIPImageProcessor.from_pretrained(folder),
        transformers.AutoTokenizer.from_pretrained(folder),
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["none", "cls_topk"])
def test_engine_and_hugging_face_agree(tiny_model, checkpoint, method):
    engine = EngineAnswerer(str(tiny_model), method, keep=4, threads=1)
    hugging_face = HfAnswerer(str(checkpoint), method, keep=4, device="cpu", dtype="float32")
    request = Request("where is the box?", (picture(),), max_new_tokens=4, continuation="on the")
    assert engine.answer(request) == hugging_face.answer(request)
    ours, theirs = engine.loss(request), hugging_face.loss(request)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-3)
    assert ours[1] == theirs[1]
    engine.close()


def test_losses_tell_continuations_apart(tiny_model):
    engine = EngineAnswerer(str(tiny_model), "atp", keep=8, threads=1)
    losses = [
        engine.loss(Request("where is the box?", (picture(),), continuation=text))[0]
        for text in ("left", "shelf", "red box")
    ]
    assert len(set(losses)) == 3
    assert min(losses) > 0.0
    engine.close()


def test_a_question_without_an_image_names_the_model_that_takes_it(tiny_model):
    engine = EngineAnswerer(str(tiny_model), threads=1)
    with pytest.raises(InvalidQueryError, match="edge_atp_hf"):
        engine.answer(Request("2 + 2?", ()))
    engine.close()


def test_lmms_eval_finds_and_runs_the_engine(tiny_model, documents):
    """The real interface: registry, constructor, both request types."""
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed (extra `lmms`)")
    from lmms_eval.api.instance import Instance
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    registry = ModelRegistryV2()
    registry.load_entrypoint_manifests()
    model_class = registry.get_model_class("edge_atp_engine")
    model = model_class.create_from_arg_string(
        f"model={tiny_model},method=atp,keep=4", {"batch_size": 1, "device": "cpu"}
    )
    model.task_dict = documents
    metadata = {"task": "pope", "doc_id": 0, "repeats": 1}
    asked = [
        Instance("generate_until", arguments({"max_new_tokens": 3}, doc_id), doc_id, metadata)
        for doc_id in (0, 1)
    ]
    answers = model.generate_until(asked)
    assert len(answers) == 2
    assert all(isinstance(answer, str) for answer in answers)
    context, _, visual, doc_id, task, split = arguments()
    scored = Instance("loglikelihood", (context, " yes", visual, doc_id, task, split), 0, metadata)
    ((loss, greedy),) = model.loglikelihood([scored])
    assert loss > 0.0
    assert isinstance(greedy, bool)
    with pytest.raises(NotImplementedError):
        model.generate_until_multi_round(asked)


def test_the_entry_point_is_declared():
    """What lmms-eval looks for, in the installed package's metadata."""
    found = [e.value for e in entry_points(group="lmms_eval.models") if e.name == "edge_atp"]
    if not found:
        pytest.skip("edge_atp is not installed, or was before the entry point was declared")
    assert found[0] == "edge_atp.evaluation.lmms_eval_plugin:manifests"
