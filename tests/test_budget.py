import math

import numpy as np
import pytest

from edge_atp.budget import Budget, mass_to_tokens, plan, ratio_to_tokens
from edge_atp.errors import InvalidQueryError
from edge_atp.types import Policy, PruneSpec

DEFAULT = Budget(Policy.KEEP_RATIO, "atp", 0.5, 0.25)


@pytest.mark.parametrize(
    ("ratio", "patches", "kept"),
    [
        (1.0, 256, 256),
        (0.25, 256, 64),
        (0.3, 256, 77),  # 76.8 rounds up
        (0.5, 5, 3),  # half rounds up, not to even
        (0.001, 256, 1),  # never zero
        (float(np.float32(0.1)), 5, 1),  # 0.5000000074 from a float32 message field
        (float(np.float32(0.7)), 5, 4),  # 3.4999999 off the wire is 3.5
    ],
)
def test_ratio_rounds_half_up_and_keeps_at_least_one(ratio, patches, kept):
    assert ratio_to_tokens(ratio, patches) == kept


@pytest.mark.parametrize(
    ("mass", "scores", "kept"),
    [
        (0.5, [4, 3, 2, 1], 2),  # 4 of 10 is too little, 7 is enough
        (0.4, [4, 3, 2, 1], 1),
        (1.0, [4, 3, 2, 1], 4),
        (1.0, [4, 3, 0, 0], 2),  # zeros add nothing
        (1.0, [1, 1, 1e-8, 0], 3),  # and everything else does
        (0.5, [-1, -1, 3, 1], 1),  # shifted to 0, 0, 4, 2
        (0.5, [0, 0, 0, 0], 2),
        (0.45, [0, 0, 0, 0, 0], 3),  # equal scores, whatever they are: 2 of 5 are too few
        (0.45, [-1, -1, -1, -1, -1], 3),
        (0.45, [2, 2, 2, 2, 2], 3),
        (float(np.float32(0.6)), [1] * 10, 6),  # 0.60000002 from a float32 message field
    ],
)
def test_score_mass_keeps_the_fewest_that_reach_it(mass, scores, kept):
    assert mass_to_tokens(mass, np.array(scores, dtype=np.float32)) == kept


def test_defaults_fill_what_the_question_leaves_open():
    assert plan(PruneSpec(), DEFAULT) == DEFAULT
    settled = plan(PruneSpec(method="cls_topk", alpha=0.0), DEFAULT)
    assert settled == Budget(Policy.KEEP_RATIO, "cls_topk", 0.0, 0.25)


def test_off_means_dense_whatever_else_is_set():
    settled = plan(PruneSpec(Policy.OFF, method="atp", keep_ratio=0.1), DEFAULT)
    assert settled.method == "none"
    assert settled.num_kept(256) == 256


@pytest.mark.parametrize("ratio", [0.0, -1.0, 2.0, math.nan, math.inf])
def test_keep_ratio_outside_its_range_is_refused(ratio):
    with pytest.raises(InvalidQueryError, match=r"prune.keep_ratio is .*\(0, 1\]"):
        plan(PruneSpec(Policy.KEEP_RATIO, keep_ratio=ratio), DEFAULT)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_alpha_outside_its_range_is_refused(alpha):
    with pytest.raises(InvalidQueryError, match=r"prune\.alpha"):
        plan(PruneSpec(alpha=alpha), DEFAULT)


def test_token_budget_above_the_patches_keeps_all():
    assert plan(PruneSpec(Policy.TOKEN_BUDGET, max_visual_tokens=999), DEFAULT).num_kept(256) == 256
    with pytest.raises(
        InvalidQueryError, match=r"max_visual_tokens is 0; .*the most that are kept"
    ):
        plan(PruneSpec(Policy.TOKEN_BUDGET, max_visual_tokens=0), DEFAULT)


def test_score_mass_needs_a_method_with_scores():
    budget = plan(PruneSpec(Policy.SCORE_MASS, method="random", score_mass=0.9), DEFAULT)
    with pytest.raises(InvalidQueryError, match="random"):
        budget.num_kept(256, scores=None)


def test_latency_budget_without_a_cost_model_says_what_to_ask_with_instead():
    spec = PruneSpec(Policy.LATENCY_BUDGET, latency_budget_s=0.1)
    with pytest.raises(InvalidQueryError, match=r"cost model.*TOKEN_BUDGET"):
        plan(spec, DEFAULT)


def test_a_latency_budget_becomes_the_tokens_that_fit_the_method():
    spec = PruneSpec(Policy.LATENCY_BUDGET, method="cls_topk", latency_budget_s=0.1)
    asked = []

    def fits(seconds, method):
        asked.append((seconds, method))
        return 100

    settled = plan(spec, DEFAULT, fits)
    assert (settled.policy, settled.num_kept(256)) == (Policy.TOKEN_BUDGET, 100)
    assert asked == [(0.1, "cls_topk")]
