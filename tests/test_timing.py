import time

import pytest

from edge_atp.timing import StageClock, encoding_times
from edge_atp.types import StageTimes


def test_stages_add_up_to_the_total():
    clock = StageClock(accepted_s=time.perf_counter() - 0.25, frame_age_s=1.5)
    for stage in ("preprocess", "vision_encode", "preprocess", "prune", "prefill"):
        clock.lap(stage)
    clock.first_token()
    clock.lap("decode")
    times = clock.times()
    laps = (times.queue_wait, times.preprocess, times.vision_encode, times.prune, times.prefill)
    assert times.total == pytest.approx(sum(laps) + times.decode, abs=1e-9)
    assert times.queue_wait >= 0.25
    assert 0.25 <= times.first_token <= times.total
    assert times.frame_age == 1.5


def test_what_frames_took_before_their_question_is_summed_without_the_waiting():
    one = StageTimes(queue_wait=9.0, preprocess=1.0, vision_encode=2.0, total=12.0)
    two = StageTimes(preprocess=0.5, vision_encode=0.25, prune=4.0, total=4.75)
    assert encoding_times([one, two]) == StageTimes(
        preprocess=1.5, vision_encode=2.25, prune=4.0, total=7.75
    )
    assert encoding_times([]) == StageTimes()
