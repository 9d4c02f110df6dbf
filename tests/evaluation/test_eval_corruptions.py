import itertools

import cv2
import numpy as np
import pytest

from edge_atp.errors import ConfigError
from edge_atp.evaluation.conditions import Condition, robustness_conditions
from edge_atp.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt


@pytest.fixture
def picture():
    smooth = cv2.GaussianBlur(np.random.default_rng(0).normal(0, 1, (96, 128, 3)), (0, 0), 2.0)
    return np.clip(110 + 300 * smooth, 0, 200).astype(np.uint8)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_severity_disturbs_more_than_the_one_before(picture, name):
    before = picture.copy()
    distances = [
        np.abs(corrupt(picture, name, s, seed=3, key="a").astype(int) - picture).mean()
        for s in SEVERITIES
    ]
    assert np.array_equal(picture, before)
    assert distances[0] > 0.5
    assert all(a < b for a, b in itertools.pairwise(distances)), distances


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_same_seed_and_image_give_the_same_pixels(picture, name):
    first = corrupt(picture, name, 3, seed=1, key="a.png")
    assert first.shape == picture.shape
    assert first.dtype == np.uint8
    assert np.array_equal(first, corrupt(picture, name, 3, seed=1, key="a.png"))


@pytest.mark.parametrize("name", ["gaussian_noise", "occlusion"])
def test_random_corruptions_differ_between_images_and_seeds(picture, name):
    first = corrupt(picture, name, 3, seed=1, key="a.png")
    assert not np.array_equal(first, corrupt(picture, name, 3, seed=1, key="b.png"))
    assert not np.array_equal(first, corrupt(picture, name, 3, seed=2, key="a.png"))


def test_parameters_of_severity(picture):
    grey = np.full((200, 200, 3), 100, np.uint8)
    noisy = corrupt(grey, "gaussian_noise", 1, seed=0)
    assert noisy.astype(float).std() == pytest.approx(0.08 * 255, rel=0.05)
    brighter = corrupt(grey, "brightness", 2, seed=0)
    assert np.unique(brighter).tolist() == [151]  # 100 + 0.2 * 255
    black = np.zeros((200, 200, 3), np.uint8)
    covered = (corrupt(black, "occlusion", 5, seed=0) > 0).any(-1).mean()
    assert 0.1 < covered <= 0.31  # 30 % less overlaps


def test_blur_scales_with_the_image():
    edge = np.zeros((224, 224, 3), np.uint8)
    edge[:, 112:] = 255
    wide = np.zeros((448, 448, 3), np.uint8)
    wide[:, 224:] = 255
    small = corrupt(edge, "blur", 3, seed=0)[112, :, 0].astype(float)
    large = corrupt(wide, "blur", 3, seed=0)[224, :, 0].reshape(-1, 2).mean(axis=1)
    assert np.abs(small - large).max() < 3


def test_unknown_names_list_the_choices(picture):
    with pytest.raises(ConfigError, match="choose one of gaussian_noise, blur"):
        corrupt(picture, "fog", 1, seed=0)
    with pytest.raises(ConfigError, match="severity is 6"):
        corrupt(picture, "blur", 6, seed=0)


def test_conditions_cover_corruptions_and_the_wordings_there_are(squares_dataset):
    conditions = robustness_conditions(squares_dataset.examples)
    assert len(conditions) == 5 * 5 + 1
    assert conditions[0].name == "gaussian_noise@1"
    assert conditions[-1].name == "paraphrase"
    first, second = squares_dataset.examples[:2]
    assert conditions[-1].question(first) == "which colour does the square have?"
    assert conditions[-1].question(second) is None
    assert Condition().question(second) == second.question
    image = squares_dataset.read_image(first.image)
    assert np.array_equal(Condition().image(image, 0, "a"), image)
    assert not np.array_equal(conditions[0].image(image, 0, "a"), image)
