"""How long an answer is expected to take, and when a deadline is hopeless."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from edge_atp_ros.estimating import Estimator

from edge_atp.budget import Budget
from edge_atp.config import PipelineConfig
from edge_atp.cost_model import CostModel, Identity
from edge_atp.latency_budget import LatencyBudget
from edge_atp.types import PatchGrid, Policy, PruneSpec, Query

QUERY = Query("where?")


def cost_model() -> CostModel:
    """One millisecond per kept token, ten per image encoded, nothing else."""
    zero = {"preprocess": (0.0,), "text": (0.0,), "select": (0.0,), "decode": (0.0, 0.0)}
    return CostModel(
        identity=Identity("m", "0", "ort-cpu", "cpu"),
        coefficients=zero | {"vision": (10.0,), "project": (0.0, 1.0), "prefill": (0.0, 0.0, 0.0)},
        min_kept=1,
        max_kept=256,
        answer_tokens=4,
        method="atp",
    )


@dataclass
class Pipeline:
    """As much of a pipeline as is asked."""

    latency: LatencyBudget = field(default_factory=lambda: LatencyBudget(None))
    config: PipelineConfig = field(default_factory=PipelineConfig)
    default_budget: Budget = field(
        default_factory=lambda: Budget(Policy.KEEP_RATIO, "atp", 0.5, 0.25)
    )
    grid: PatchGrid = field(default_factory=lambda: PatchGrid(16, 16))
    engine: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(
            prompt_tokens=lambda text, images: SimpleNamespace(ids=[0] * (5 + images))
        )
    )


def test_nothing_is_expected_before_the_first_answers():
    estimator = Estimator()
    assert estimator.expected_s(Pipeline(), QUERY, 1) is None
    assert not estimator.hopeless(Pipeline(), QUERY, 1, 1e-6)
    assert estimator.hopeless(Pipeline(), QUERY, 1, 0.0), "the time is up"


def test_the_median_of_the_same_question_or_else_of_all():
    estimator = Estimator()
    for seconds in (0.1, 0.2, 9.0):
        estimator.observe(QUERY, 1, seconds)
    assert estimator.expected_s(Pipeline(), QUERY, 1) == 0.2
    for _ in range(3):
        estimator.observe(QUERY, 2, 0.5)
    assert estimator.expected_s(Pipeline(), QUERY, 2) == 0.5
    assert estimator.expected_s(Pipeline(), Query("another?"), 1) == 0.5


@pytest.mark.parametrize(
    ("query", "num_images", "expected_s"),
    [
        (QUERY, 1, 0.074),
        (QUERY, 2, 0.148),
        (Query("w", prune=PruneSpec(Policy.TOKEN_BUDGET, max_visual_tokens=10)), 1, 0.020),
        (Query("w", prune=PruneSpec(Policy.OFF)), 1, 0.266),
        (Query("w", prune=PruneSpec(Policy.LATENCY_BUDGET, latency_budget_s=0.3)), 1, 0.3),
    ],
)
def test_the_cost_model_comes_first(query, num_images, expected_s):
    estimator = Estimator()
    for _ in range(3):
        estimator.observe(query, num_images, 7.0)
    pipeline = Pipeline(LatencyBudget(cost_model()))
    assert estimator.expected_s(pipeline, query, num_images) == pytest.approx(expected_s)


@pytest.mark.parametrize(
    "query",
    [
        Query("w", choices=("a", "b")),
        Query("w", conversation_id="c"),
        Query("w", prune=PruneSpec(Policy.SCORE_MASS, score_mass=0.5)),
    ],
)
def test_what_the_cost_model_does_not_know_is_observed(query):
    estimator = Estimator()
    for _ in range(3):
        estimator.observe(query, 1, 7.0)
    assert estimator.expected_s(Pipeline(LatencyBudget(cost_model())), query, 1) == 7.0


def test_a_slow_spell_is_not_held_against_the_device_for_ever():
    estimator, pipeline = Estimator(), Pipeline()
    for _ in range(3):
        estimator.observe(QUERY, 1, 5.0)
    given_up = 0
    while estimator.hopeless(pipeline, QUERY, 1, 0.5):
        estimator.given_up()
        given_up += 1
        assert given_up < 100
    assert given_up == 8
    estimator.tried()
    assert estimator.hopeless(pipeline, QUERY, 1, 0.5)


def test_the_memory_is_bounded():
    estimator = Estimator()
    for number in range(1000):
        estimator.observe(Query(str(number)), 1, 0.1)
    assert len(estimator._by_question) <= 256
