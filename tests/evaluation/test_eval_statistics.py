import numpy as np
import pytest

from edge_atp.errors import ShapeError
from edge_atp.evaluation.bootstrap import ImageBootstrap
from edge_atp.evaluation.calibration import calibration
from edge_atp.evaluation.grounding import target_kept


def test_intervals_match_the_textbook_standard_error():
    rng = np.random.default_rng(0)
    values = rng.random((400, 1))
    bootstrap = ImageBootstrap(np.arange(400), num_draws=4000, seed=1)
    estimate = bootstrap.estimates(values)[0]
    error = values.std() / np.sqrt(400)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert estimate.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_questions_of_one_image_are_drawn_together():
    # 10 identical questions an image carry no more evidence than one.
    per_image = np.random.default_rng(0).integers(0, 2, 50).astype(float)
    one = ImageBootstrap(np.arange(50)).estimates(per_image[:, None])[0]
    ten = ImageBootstrap(np.repeat(np.arange(50), 10)).estimates(np.repeat(per_image, 10)[:, None])
    assert (ten[0].low, ten[0].high) == pytest.approx((one.low, one.high))
    assert ten[0].count == 500


def test_a_paired_difference_sees_what_separate_intervals_hide():
    rng = np.random.default_rng(0)
    hard = rng.random(300)
    dense = (rng.random(300) < hard).astype(float)
    pruned = np.where(np.arange(300) % 12 == 0, 0.0, dense)  # loses a few answers, wins none
    bootstrap = ImageBootstrap(np.arange(300))
    separate = bootstrap.estimates(np.stack([dense, pruned], 1))
    assert separate[1].high > separate[0].low
    difference = bootstrap.differences(np.stack([dense, pruned], 1), reference=0)[1]
    assert difference.high < 0.0
    assert difference.p_value < 0.01
    assert difference.value == pytest.approx(pruned.mean() - dense.mean())


def test_no_difference_has_p_value_one_and_an_empty_column_counts_nothing():
    values = np.array([[1.0, 1.0, np.nan], [0.0, 0.0, np.nan]])
    bootstrap = ImageBootstrap(np.array([0, 1]))
    assert bootstrap.differences(values[:, :2], 0)[1].p_value == 1.0
    assert bootstrap.estimates(values)[2].count == 0


def test_nan_questions_do_not_count():
    values = np.array([[1.0], [np.nan], [0.0], [np.nan]])
    estimate = ImageBootstrap(np.array([0, 0, 1, 1])).estimates(values)[0]
    assert (estimate.value, estimate.count) == (0.5, 2)


def test_same_seed_same_interval_and_nothing_to_resample_is_an_error():
    values = np.random.default_rng(0).random((30, 1))
    index = np.arange(30)
    first, second, other = (
        ImageBootstrap(index, seed=seed).estimates(values)[0] for seed in (5, 5, 6)
    )
    assert first == second
    assert first != other
    with pytest.raises(ShapeError, match="no question"):
        ImageBootstrap(np.zeros(0, np.int64))


def test_calibration_error_by_hand():
    # Bin (0.8, 0.9]: confidence 0.9, accuracy 0.5; bin (0.5, 0.6]: confidence 0.6, accuracy 1.
    result = calibration(np.array([0.9, 0.9, 0.6, np.nan]), np.array([1.0, 0.0, 1.0, 1.0]))
    assert result.ece == pytest.approx((2 * 0.4 + 1 * 0.4) / 3)
    assert result.counts == (0, 0, 0, 0, 0, 1, 0, 0, 2, 0)
    assert result.accuracies[8] == 0.5
    assert result.confidences[5] == pytest.approx(0.6)
    assert result.accuracies[0] is None


def test_calibration_limits():
    assert calibration(np.array([0.0, 1.0]), np.array([0.0, 1.0])).ece == 0.0
    assert calibration(np.array([np.nan]), np.array([1.0])) is None
    with pytest.raises(ShapeError, match="in \\[0, 1\\]"):
        calibration(np.array([1.2]), np.array([1.0]))


def test_target_kept_is_the_share_of_the_target():
    target = np.array([True, True, False, True, True])
    kept = np.array([True, False, True, True, False])
    assert target_kept(kept, target) == 0.5
