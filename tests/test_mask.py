import numpy as np
import pytest

from edge_atp.mask import mask_image, overlay, pack_bits, to_bool, unpack_bits
from edge_atp.types import Frame, PatchGrid, PatchMask, SourceRegion


def make_mask(kept, grid, height, width, region):
    image = np.full((height, width, 3), 200, dtype=np.uint8)
    return PatchMask(Frame(image), grid, region, np.asarray(kept, dtype=bool))


def test_bits_are_row_major_most_significant_first():
    kept = to_bool(np.array([0, 3, 8]), 9)
    packed = pack_bits(kept)
    assert packed.tolist() == [0b10010000, 0b10000000]
    assert unpack_bits(packed, PatchGrid(3, 3)).ravel().tolist() == kept.tolist()


def test_mask_image_has_the_frame_size_and_the_patch_geometry():
    # 2 x 2 patches over the middle 4 x 4 of a 4 x 8 image; the lower left one is kept.
    mask = make_mask([0, 0, 1, 0], PatchGrid(2, 2), 4, 8, SourceRegion(2, 0, 4, 4))
    expected = np.zeros((4, 8), dtype=np.uint8)
    expected[2:4, 2:4] = 255
    np.testing.assert_array_equal(mask_image(mask), expected)


def test_mask_image_covers_regions_that_are_no_multiple_of_the_grid():
    mask = make_mask(np.ones(9), PatchGrid(3, 3), 10, 10, SourceRegion(0, 0, 10, 10))
    assert (mask_image(mask) == 255).all()


@pytest.mark.parametrize("caption", ["", "Q: where?\nA: " + "a long answer " * 40])
def test_overlay_dims_what_was_pruned(caption):
    mask = make_mask([1, 0], PatchGrid(1, 2), 64, 128, SourceRegion(0, 0, 128, 64))
    picture = overlay(mask, caption)
    assert picture[32, 20].tolist() == [200, 200, 200]
    assert picture[32, 100].tolist() == [50, 50, 50]
    assert picture.shape[1] == 128
    assert (picture.shape[0] > 64) == bool(caption)
