"""When which question is asked about which frame."""

from dataclasses import replace

import pytest

from edge_atp.errors import ConfigError
from edge_atp.replay.answering import Replayer
from edge_atp.replay.questions import ONCE, ReplayQuestion
from edge_atp.replay.recording import open_recording
from edge_atp.types import Query, StageTimes

LEFT, RIGHT = "/left/image_raw", "/right/image_raw"
TEN_FRAMES = [(LEFT, 100 * number) for number in range(10)]


def ask(text="hi", **when):
    return ReplayQuestion(Query(text, query_id=text), source="q.yaml, entry 1", **when)


@pytest.fixture
def run(write_bag, typestore, counting_pipeline):
    """Texts of the replies, by question, to a bag of these images."""

    def replies(images, questions, every=1, **bag):
        with open_recording(write_bag(images, **bag), typestore) as recording:
            replayer = Replayer(counting_pipeline, questions, list(recording.topics), every)
            return [reply for _, made in replayer.run(recording) for reply in made]

    return replies


def texts(replies, question="hi"):
    return [r.answer.text for r in replies if r.question.query.query_id == question]


def test_every_frame_is_asked_about_and_none_dropped(run):
    replies = run(TEN_FRAMES, [ask()])
    assert texts(replies) == [str(number) for number in range(10)]
    assert [reply.sequence for reply in replies] == list(range(10))


def test_every_nth_frame_counts_from_the_first(run):
    assert texts(run(TEN_FRAMES, [ask()], every=3)) == ["0", "3", "6", "9"]


def test_a_window_includes_both_ends(run):
    assert texts(run(TEN_FRAMES, [ask(at_s=0.2, until_s=0.4)])) == ["2", "3", "4"]


def test_once_takes_the_first_frame_of_the_window(run):
    assert texts(run(TEN_FRAMES, [ask(at_s=0.25, mode=ONCE)])) == ["3"]


def test_the_rate_is_an_upper_limit(run):
    assert texts(run(TEN_FRAMES, [ask(max_rate_hz=4.0)])) == ["0", "3", "6", "9"]


def test_questions_share_one_encoding_of_a_frame(run, counting_pipeline):
    replies = run(TEN_FRAMES, [ask("a"), ask("b", at_s=0.8)])
    assert counting_pipeline.encoded == list(range(10))
    assert texts(replies, "b") == ["8", "9"]
    shared = replies[-1].answer.times
    assert shared == StageTimes(prefill=0.5, total=0.5)  # b came second: nothing left to encode
    assert replies[-2].answer.times.vision_encode > 0


def test_each_encoder_runs_once_a_frame_and_only_where_it_is_wanted(run, counting_pipeline):
    words = ("cut a", "cut b", "method a", "method b")
    run(TEN_FRAMES, [*map(ask, words), ask("whole", at_s=0.8)])
    assert counting_pipeline.cut == counting_pipeline.pieces == list(range(10))
    assert counting_pipeline.encoded == [8, 9]


def test_the_choosing_of_a_cut_in_the_encoder_is_part_of_the_times(run):
    first, second = run(TEN_FRAMES[:1], [ask("method a"), ask("method b")])
    times = first.answer.times
    assert times.prune > 0
    stages = times.preprocess + times.vision_encode + times.prune + times.prefill
    assert times.total == pytest.approx(stages)
    assert second.answer.times == StageTimes(prefill=0.5, total=0.5)


def test_what_a_question_encodes_for_itself_is_part_of_its_times(run, counting_pipeline):
    """Methods that cut inside the encoder do; the stages still add up to the total."""
    answer = counting_pipeline.answer

    def slow(query, encodings):
        own = StageTimes(preprocess=0.25, vision_encode=0.5, prefill=0.5, total=1.25)
        return replace(answer(query, encodings), times=own)

    counting_pipeline.answer = slow
    for reply in run(TEN_FRAMES[:2], [ask()]):
        times = reply.answer.times
        assert times.preprocess > 0.25
        assert times.vision_encode > 0.5
        stages = times.preprocess + times.vision_encode + times.prefill
        assert times.total == pytest.approx(stages)


def test_frames_nobody_asks_about_are_not_decoded(run, counting_pipeline):
    run(TEN_FRAMES, [ask(at_s=0.5, until_s=0.5)])
    assert counting_pipeline.encoded == [5]


def test_several_cameras_are_seen_in_the_order_of_the_question(run):
    images = [(LEFT, 0), (RIGHT, 10), (LEFT, 100), (LEFT, 200), (RIGHT, 210)]
    both = run(images, [ask(cameras=("right", "left"))], name="both")
    assert texts(both) == ["1 0", "4 3"]  # asked when a new frame of the right one comes
    assert [image.camera for image in both[0].images] == ["right", "left"]
    assert both[0].newest.camera == "right"
    left = run(images, [ask(cameras=("left", "right"))], name="left")
    assert texts(left) == ["2 1", "3 1"]  # the first left frame had no right one beside it
    assert left[0].newest.camera == "left"
    assert texts(run(images, [ask()], name="all")) == ["2 1", "3 1"]  # all cameras, by topic


def test_a_frame_that_cannot_be_decoded_is_answered_with_the_reason(run, counting_pipeline):
    replies = run(TEN_FRAMES[:2], [ask(expect="0")], encoding="32FC1")
    assert [reply.answer for reply in replies] == [None, None]
    assert "32FC1" in replies[0].error
    assert replies[0].right is False


def test_right_ignores_case_and_outer_blanks(run):
    assert [reply.right for reply in run(TEN_FRAMES[:2], [ask(expect=" 0")])] == [True, False]
    assert run(TEN_FRAMES[:1], [ask()], name="unknown")[0].right is None


@pytest.mark.parametrize(
    ("question", "every", "says"),
    [
        (ask(cameras=("front",)), 1, "q.yaml, entry 1: unknown camera front; cameras .*: left"),
        (ask("refused"), 1, "q.yaml, entry 1: text is refused"),
        (ask(), 0, "--every is 0"),
    ],
)
def test_what_cannot_be_served_is_refused_before_work(run, question, every, says):
    with pytest.raises(ConfigError, match=says):
        run(TEN_FRAMES[:1], [question], every=every)
