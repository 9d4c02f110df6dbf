import time

import pytest

from edge_atp.timing import StageClock


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
