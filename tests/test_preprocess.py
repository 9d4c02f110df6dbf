import numpy as np
import pytest

from edge_atp.errors import ConfigError, ImageError
from edge_atp.preprocess import SQUASH, Preprocessor
from edge_atp.types import SourceRegion

IDENTITY = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def test_center_crop_uses_the_middle_square():
    preprocess = Preprocessor(size=4, **IDENTITY)
    image = np.zeros((8, 16, 3), dtype=np.uint8)
    image[:, 4:12] = 255
    pixel_values, region = preprocess(image)
    assert region == SourceRegion(4, 0, 8, 8)
    assert pixel_values.shape == (1, 3, 4, 4)
    np.testing.assert_allclose(pixel_values, 1.0)


def test_squash_uses_the_whole_image():
    _, region = Preprocessor(size=4, rule=SQUASH, **IDENTITY)(np.zeros((6, 10, 3), dtype=np.uint8))
    assert region == SourceRegion(0, 0, 10, 6)


def test_channels_stay_rgb_and_are_normalised_one_by_one():
    preprocess = Preprocessor(size=2, mean=(0.5, 0.0, 0.25), std=(0.5, 1.0, 0.25))
    image = np.zeros((2, 2, 3), dtype=np.uint8)
    image[..., 0] = 255
    pixel_values, _ = preprocess(image)
    np.testing.assert_allclose(pixel_values[0, :, 0, 0], [1.0, 0.0, -1.0], atol=1e-6)


def test_shrinking_averages():
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    image[::2] = 255
    pixel_values, _ = Preprocessor(size=2, **IDENTITY)(image)
    np.testing.assert_allclose(pixel_values, 128 / 255)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.zeros((0, 4, 3), dtype=np.uint8), "empty"),
        (np.zeros((4, 4), dtype=np.uint8), "RGB"),
        (np.zeros((4, 4, 3), dtype=np.float32), "float32"),
    ],
)
def test_bad_images_are_refused(image, says):
    with pytest.raises(ImageError, match=says):
        Preprocessor(size=4, **IDENTITY)(image)


def test_unknown_rule_lists_the_choices():
    with pytest.raises(ConfigError, match="shortest_edge_center_crop"):
        Preprocessor(size=4, rule="stretch", **IDENTITY)
