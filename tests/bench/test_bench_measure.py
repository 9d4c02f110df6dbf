"""Alternation, medians and ratios, with contenders that invent their times."""

import numpy as np
import pytest

from edge_atp.bench.measure import Run, Timed, alternate, ratios, spread
from edge_atp.bench.questions import Question
from edge_atp.bench.report import summarise
from edge_atp.bench.stages import STAGES
from edge_atp.evaluation.arms import Arm
from edge_atp.flops import ModelSpec, Transformer

SHORT, CAPTION = Question("where?"), Question("describe.", "caption")


class Fake:
    """Takes ``ms`` times a load that grows with every run of anybody."""

    load = 1.0

    def __init__(self, name, ms, tokens=(5, 6), kept=256):
        self.name, self.ms, self.tokens, self.kept = name, ms, tokens, kept
        self.asked = []

    def answer(self, question, picture):
        self.asked.append((question.text, picture))
        Fake.load *= 1.02
        took = self.ms * Fake.load
        return run(took, self.tokens, self.kept)


def run(ms, tokens=(5, 6), kept=256):
    stages = {stage: 0.0 for stage in STAGES}
    stages |= {"prefill": ms / 2, "decode": ms / 4, "vision": ms / 4}
    return Run(
        wall_ms=ms,
        cpu_ms=ms / 2,
        token_ids=tokens,
        compared_wall_ms=ms,
        compared_cpu_ms=ms / 2,
        text="a",
        stages_ms=stages,
        stages_cpu_ms=stages,
        visual_kept=kept,
        visual_total=256,
        text_tokens=20,
        peak_bytes=1_000_000,
    )


def model():
    llm = Transformer(4, 64, 128, 4, 4, 16, gated=True)
    vision = Transformer(3, 48, 192, 3, 3, 16)
    return ModelSpec("tiny", vision, 256, 147, (48, 64, 64), llm, 320)


def test_every_contender_runs_once_a_round_and_the_order_turns():
    contenders = [Fake("a", 1.0), Fake("b", 1.0), Fake("c", 1.0)]
    timed = list(alternate(contenders, [SHORT, CAPTION], pictures=2, rounds=2))
    assert len(timed) == 3 * 2 * 2 * (2 + 1)  # contenders, questions, pictures, warm-up and rounds
    first = ["".join(t.contender for t in timed if t.round == number)[:3] for number in (-1, 0, 1)]
    assert first == ["abc", "bca", "cab"]
    for contender in contenders:
        assert sorted(contender.asked) == sorted(contenders[0].asked)


def test_ratios_hold_on_a_machine_that_gets_ever_slower():
    Fake.load = 1.0
    timed = list(alternate([Fake("slow", 3.0), Fake("fast", 1.0)], [SHORT], 1, rounds=20))
    found = ratios(timed, "slow", "fast", lambda r: r.wall_ms)
    assert found["runs"] == 20
    assert found["median"] == pytest.approx(3.0, rel=0.03)
    # The times themselves have doubled meanwhile.
    times = [t.run.wall_ms for t in timed if t.contender == "slow"]
    assert times[-1] > 2 * times[0]


def test_the_warm_up_round_counts_for_no_time():
    entries = [
        Timed("a", SHORT, 0, -1, run(900.0)),
        Timed("b", SHORT, 0, -1, run(1.0)),
        Timed("a", SHORT, 0, 0, run(4.0)),
        Timed("b", SHORT, 0, 0, run(2.0)),
    ]
    assert ratios(entries, "a", "b", lambda r: r.wall_ms)["median"] == 2.0
    assert ratios(entries, "a", "absent", lambda r: r.wall_ms) is None


def test_spread_by_hand():
    found = spread([4.0, 1.0, 3.0, 2.0])
    assert (found["median"], found["min"], found["runs"]) == (2.5, 1.0, 4)
    assert (found["q25"], found["q75"]) == (1.75, 3.25)


def entries(hugging=True, hf_tokens=(5, 6)):
    arms = {"dense": (10.0, 256), "atp@64": (5.0, 64)}
    found = []
    for number in range(-1, 3):
        for question in (SHORT, CAPTION):
            for name, (ms, kept) in arms.items():
                found.append(Timed(name, question, 0, number, run(ms, kept=kept)))
            if hugging:
                hf = Run(20.0, 20.0, hf_tokens, 20.0, 20.0, visual_kept=256, visual_total=256)
                found.append(Timed("hugging face", question, 0, number, hf))
    return found


ARMS = [Arm("dense", 256), Arm("cls_topk", 64)]


def test_pruning_and_engine_have_shares_of_their_own():
    timed = [
        Timed(
            "cls_topk@64" if t.contender == "atp@64" else t.contender, *list(vars(t).values())[1:]
        )
        for t in entries()
    ]
    results = summarise(timed, ARMS, model(), "fp32")
    assert set(results) == {"short", "caption"}
    short = results["short"]
    assert short["pruning_share"]["cls_topk@64"]["wall"]["median"] == 2.0
    assert short["engine_share"]["cpu"]["median"] == 4.0  # 20 against 5 ms of CPU time
    assert short["against_hugging_face"]["cls_topk@64"]["wall"]["median"] == 4.0
    assert short["identical_tokens"] == {"dense": True, "expected": True}
    dense, pruned = short["contenders"]["dense"], short["contenders"]["cls_topk@64"]
    assert dense["flops"]["of_dense"] == 1.0
    assert 0 < pruned["flops"]["of_dense"] < 1
    assert pruned["flops"]["text_tokens"] == 20  # a relative figure means nothing without it
    # (64 + 20 + 1) of (256 + 20 + 1) cached tokens
    assert pruned["kv_mb"] / dense["kv_mb"] == pytest.approx(85 / 277, rel=0.02)
    assert dense["kv_mb"] == pytest.approx(2 * 4 * 277 * 64 * 4 / 1e6, abs=1e-3)


def test_other_tokens_than_hugging_face_are_told():
    found = summarise(entries(hf_tokens=(5, 7)), ARMS[:1], model(), "fp32")
    assert found["short"]["identical_tokens"]["dense"] is False


def test_an_answer_that_changes_between_rounds_is_told():
    timed = entries(hugging=False)
    changed = Timed("dense", SHORT, 0, 2, run(10.0, tokens=(9,)))
    found = summarise([*timed, changed], ARMS[:1], model(), "fp32")
    assert found["short"]["contenders"]["dense"]["deterministic"] is False
    assert found["caption"]["contenders"]["dense"]["deterministic"] is True


def test_an_interrupted_warm_up_leaves_an_empty_report():
    timed = [t for t in entries() if t.round < 0]
    assert summarise(timed, ARMS, model(), "fp32") == {}


def test_numbers_are_plain_json():
    import json

    results = summarise(entries(), ARMS[:1], model(), "fp32")
    assert np.isfinite(results["short"]["contenders"]["dense"]["wall_ms"]["median"])
    assert json.loads(json.dumps(results)) == results
