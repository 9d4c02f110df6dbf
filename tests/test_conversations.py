"""Bounds of the conversation store, and that a kept KV cache answers like one computed anew."""

import numpy as np
import pytest

from edge_atp.config import PipelineConfig
from edge_atp.conversations import Conversation, ConversationStore, without_oldest
from edge_atp.errors import BudgetExceededError, InvalidQueryError
from edge_atp.pipeline import Pipeline
from edge_atp.runtime.prompt import Turn
from edge_atp.types import Frame, Policy, PruneSpec, Query, Status

QUESTIONS = ("where is the red box?", "what is the gripper holding?", "is there a red box?")


@pytest.fixture(scope="module")
def frames(cell_images):
    return [Frame(image, stamp_ns=n + 1) for n, image in enumerate(cell_images)]


def configured(pipeline, **settings):
    """Another pipeline on the same engine."""
    return Pipeline(pipeline.engine, pipeline.engine.directory, PipelineConfig(**settings))


def turn(number, images=0):
    return Turn(
        f"question {number}", tuple(np.zeros((2, 4), np.float32) for _ in range(images)), ()
    )


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


def test_forgotten_by_count_least_used_first():
    store = ConversationStore(2, 60.0, 1 << 20)
    for name in ("a", "b", "a", "c"):
        store.put(name, Conversation((turn(0),)))
    assert len(store) == 2
    assert [bool(store.get(name).turns) for name in "abc"] == [True, False, True]


def test_forgotten_by_age_since_its_last_use():
    clock = Clock()
    store = ConversationStore(8, 10.0, 1 << 20, clock)
    store.put("old", Conversation((turn(0),)))
    clock.now_s = 6.0
    store.put("new", Conversation((turn(0),)))
    clock.now_s = 10.5
    assert not store.get("old").turns
    assert store.get("new").turns
    clock.now_s = 17.0
    assert len(store) == 0


def test_forgotten_by_memory():
    size = Conversation((turn(0, images=1),)).num_bytes
    assert size == 32
    store = ConversationStore(8, 60.0, 2 * size)
    for name in "abc":
        store.put(name, Conversation((turn(0, images=1),)))
    assert (len(store), store.num_bytes) == (2, 2 * size)
    store.put("large", Conversation((turn(0, images=3),)))
    assert len(store) == 0  # larger than the bound by itself


def test_forget_and_clear():
    store = ConversationStore(8, 60.0, 1 << 20)
    for name in "ab":
        store.put(name, Conversation((turn(0),)))
    store.forget("a")
    store.forget("never there")
    assert (bool(store.get("a").turns), len(store)) == (False, 1)
    store.clear()
    assert len(store) == 0


@pytest.mark.parametrize(
    ("images", "new_images", "left"),
    [
        ((1, 0, 0), False, [0, 2]),  # the images asked about stay
        ((1, 0, 1), False, [1, 2]),
        ((1, 0, 0), True, [1, 2]),
        ((1,), False, None),
        ((1,), True, []),
        ((), False, None),
    ],
)
def test_which_turn_goes_first(images, new_images, left):
    turns = [turn(n, count) for n, count in enumerate(images)]
    fewer = without_oldest(turns, new_images)
    names = None if fewer is None else [int(t.question.split()[1]) for t in fewer]
    assert names == left


@pytest.mark.parametrize("keep", [PruneSpec(), PruneSpec(Policy.OFF)])
def test_a_conversation_answers_like_a_prefill_of_the_whole_history(float_pipeline, frames, keep):
    """Kept keys and values against the same history computed from its beginning each time."""
    engine = float_pipeline.engine
    follower = configured(float_pipeline)
    history, before = (), 0
    for number, text in enumerate(QUESTIONS):
        new = [frames[0]] if number == 0 else []
        answer = follower.answer(Query(text, conversation_id="c", prune=keep), new)
        assert answer.turn == number + 1
        remembered = follower.conversations.get("c").turns
        prompt = engine.embed_prompt(text, remembered[number].images, history)
        whole = engine.generate(prompt, max_new_tokens=follower.config.max_new_tokens)
        assert engine.reused_tokens == 0
        assert answer.token_ids == whole.token_ids
        assert answer.confidence == pytest.approx(whole.mean_token_prob, abs=1e-4)
        # Everything but the new question and the last token or two was there.
        if number:
            assert answer.reused.kv_tokens >= before - 1
            assert answer.reused.images == 1
            assert answer.times.vision_encode == 0.0
        before = len(prompt.inputs_embeds) + len(answer.token_ids)
        history = remembered


def test_the_first_turn_is_the_plain_question(pipeline, frames):
    plain = pipeline.answer(Query(QUESTIONS[0]), [frames[0]])
    turned = configured(pipeline).answer(Query(QUESTIONS[0], conversation_id="first"), [frames[0]])
    assert (turned.token_ids, turned.confidence) == (plain.token_ids, plain.confidence)
    assert (plain.turn, turned.turn) == (0, 1)


def test_conversations_do_not_mix(pipeline, frames):
    """Two at once on one KV cache, questions in between, against each alone."""

    def talk(follower, name, frame, between=lambda: None):
        answers = []
        for number, text in enumerate(QUESTIONS):
            between()
            new = [frame] if number == 0 else []
            answers.append(follower.answer(Query(text, conversation_id=name), new).token_ids)
        return answers

    alone = [talk(configured(pipeline), "x", frame) for frame in frames]
    follower = configured(pipeline)
    second = iter(range(len(QUESTIONS)))
    other = []

    def interrupt():
        pipeline.answer(Query("describe the scene.", max_new_tokens=3), [frames[1]])
        number = next(second)
        new = [frames[1]] if number == 0 else []
        other.append(follower.answer(Query(QUESTIONS[number], conversation_id="b"), new).token_ids)

    assert talk(follower, "a", frames[0], interrupt) == alone[0]
    assert other == alone[1]


def test_new_images_join_and_the_masks_are_the_newest(pipeline, frames):
    follower = configured(pipeline)
    follower.answer(Query(QUESTIONS[0], conversation_id="c"), [frames[0]])
    answer = follower.answer(Query(QUESTIONS[1], conversation_id="c"), [frames[1]])
    assert answer.tokens.visual_total == 512
    assert [mask.frame.stamp_ns for mask in answer.masks] == [2]
    assert answer.times.vision_encode > 0
    follow_up = follower.answer(Query(QUESTIONS[2], conversation_id="c"), [])
    assert [mask.frame.stamp_ns for mask in follow_up.masks] == [2]
    assert [frame.stamp_ns for frame in follower.conversations.frames("c")] == [2]
    assert follow_up.reused.images == 2


def test_choices_in_a_turn(pipeline, frames):
    follower = configured(pipeline)
    follower.answer(Query(QUESTIONS[1], conversation_id="c"), [frames[0]])
    choices = ("red box", "nothing", "blue drum")
    answer = follower.answer(Query(QUESTIONS[1], choices=choices, conversation_id="c"), [])
    assert answer.text in choices
    turns = follower.conversations.get("c").turns
    assert pipeline.engine._prompt.decode(list(turns[1].answer_ids)).strip() == answer.text


@pytest.mark.parametrize("limits", [{"max_turns": 3}, {"max_new_tokens": 400}])
def test_long_conversations_lose_their_oldest_turns_and_keep_the_image(pipeline, frames, limits):
    follower = configured(pipeline, **limits)
    dense = PruneSpec(Policy.OFF)
    text = "is the red box that was on the top shelf in slot 3 still there, or is it gone? " * 2
    for number in range(9):
        new = [frames[0]] if number == 0 else []
        query = Query(f"{number} {text}", conversation_id="c", max_new_tokens=2, prune=dense)
        if "max_turns" not in limits:
            query = Query(f"{number} {text}", conversation_id="c", prune=dense, choices=("1", "2"))
        answer = follower.answer(query, new)
        assert answer.status in (Status.FINAL, Status.TRUNCATED)
        assert answer.turn == number + 1
        assert answer.tokens.visual_kept == 256
    turns = follower.conversations.get("c").turns
    assert turns[0].images
    assert turns[0].question.startswith("0")
    assert len(turns) < 9
    assert len(turns) <= follower.config.max_turns
    assert turns[-1].question.startswith("8")


def test_more_images_than_allowed_push_out_the_oldest(pipeline, frames):
    follower = configured(pipeline, max_images=2)
    for number in range(4):
        answer = follower.answer(Query(QUESTIONS[0], conversation_id="c"), [frames[number % 2]])
        assert answer.tokens.visual_total == 256 * min(number + 1, 2)


def test_a_turn_that_does_not_fit_by_itself_is_refused_and_the_rest_stays(pipeline, frames):
    follower = configured(pipeline)
    follower.answer(Query(QUESTIONS[0], conversation_id="c"), [frames[0]])
    with pytest.raises(BudgetExceededError, match="text tokens"):
        follower.answer(Query("where is it? " * 150, conversation_id="c"), [])
    assert follower.answer(Query(QUESTIONS[1], conversation_id="c"), []).turn == 2


def test_an_unfinished_turn_is_not_remembered(pipeline, frames):
    follower = configured(pipeline)
    canceled = follower.answer(
        Query(QUESTIONS[0], conversation_id="c"), [frames[0]], should_stop=lambda: True
    )
    assert canceled.status is Status.CANCELED
    with pytest.raises(InvalidQueryError, match="conversation 'c' is not remembered"):
        follower.answer(Query(QUESTIONS[0], conversation_id="c"), [])


def test_memory_counts_frames_tokens_and_keys(pipeline, frames):
    follower = configured(pipeline)
    follower.answer(Query(QUESTIONS[0], conversation_id="c"), [frames[0]])
    conversation = follower.conversations.get("c")
    llm = pipeline.manifest.llm
    length = len(conversation.held.rows)
    keys_and_values = 2 * llm.layers * llm.kv_heads * length * llm.head_dim * 4
    rows = length * llm.hidden * 4
    visual = 64 * llm.hidden * 4
    assert conversation.num_bytes == frames[0].image.nbytes + visual + rows + keys_and_values
    assert follower.conversations.num_bytes == conversation.num_bytes
