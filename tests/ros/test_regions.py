"""Parameter cameras.<name>.roi: read, refused, and its way through the encoder into the mask."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from edge_atp_ros.encodings import Encodings
from edge_atp_ros.frames import CameraImage, StoredFrame
from edge_atp_ros.regions import parse_region, parse_regions
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image
from vlm_client import make_image, pattern

from edge_atp.errors import ConfigError, ImageError
from edge_atp.mask import mask_image
from edge_atp.pipeline import Pipeline
from edge_atp.types import Frame, Policy, PruneSpec, Query, SourceRegion


@pytest.fixture(scope="module")
def pipeline():
    pipeline = Pipeline.load()
    yield pipeline
    pipeline.close()


def stored(image: Image, number: int = 1) -> StoredFrame:
    return StoredFrame("front", number, 1, serialize_message(image), Image)


@pytest.mark.parametrize(
    "values", [[1, 2, 3], [1, 2, 3, 4, 5], [-1, 0, 5, 5], [0, 0, 5, 0], [1.0, 0, 5, 5], [True] * 4]
)
def test_what_is_no_region_is_refused(values):
    with pytest.raises(ConfigError, match=r"cameras\.front\.roi is \["):
        parse_region("cameras.front.roi", values)


def test_regions_of_several_cameras():
    values = {"cameras.left.roi": [1, 2, 30, 40], "cameras.right.roi": [0, 0, 0, 0]}
    assert parse_regions(["left", "right", "top"], values) == {"left": SourceRegion(1, 2, 30, 40)}


def test_a_part_of_an_image_is_encoded_as_that_picture_alone(pipeline):
    pixels = pattern(480, 640)
    region = SourceRegion(100, 40, 300, 200)
    image = CameraImage("front", make_image(pixels))
    encoding, _ = Encodings(1).encode(pipeline, image, None, region)
    alone = pipeline.encode(Frame(pixels[40:240, 100:400]))

    np.testing.assert_array_equal(encoding.vision.patch_features, alone.vision.patch_features)
    assert encoding.frame.image.shape == (480, 640, 3), "the mask is about the whole image"
    inner = alone.region
    assert encoding.region == SourceRegion(inner.x + 100, inner.y + 40, inner.width, inner.height)


def test_kept_patches_lie_in_the_region(pipeline):
    region = SourceRegion(320, 0, 320, 240)
    image = CameraImage("front", make_image(pattern(480, 640)))
    encoding, _ = Encodings(1).encode(pipeline, image, None, region)
    (mask,) = pipeline.answer(Query("where is the red box?", max_new_tokens=2), [encoding]).masks

    kept = np.argwhere(mask_image(mask) > 0)
    assert len(kept) > 0
    rows, cols = kept[:, 0], kept[:, 1]
    assert cols.min() >= 320
    assert cols.max() < 640
    assert rows.max() < 240


def test_the_encoder_that_cuts_looks_at_the_region_and_runs_once(pipeline):
    region = SourceRegion(100, 40, 300, 200)
    pixels = pattern(480, 640)
    frame = stored(make_image(pixels))
    spec = PruneSpec(Policy.TOKEN_BUDGET, method="cut+atp", max_visual_tokens=32)
    query = Query("where is the red box?", max_new_tokens=2, prune=spec)
    encodings = Encodings(1)
    image = encodings.read(frame)
    (cut,) = pipeline.wants_cut(query, 1)
    assert cut
    encoding, _ = encodings.encode(pipeline, image, frame, region, cut=cut)
    answer = pipeline.answer(query, [encoding])

    alone = pipeline.answer(query, [Frame(pixels[40:240, 100:400])])
    assert answer.masks[0].kept.tolist() == alone.masks[0].kept.tolist()
    assert answer.token_ids == alone.token_ids
    assert answer.reused.images == 1, "it was not encoded again"
    assert answer.masks[0].region == encoding.region
    again, _ = encodings.encode(pipeline, image, frame, region, cut=cut)
    assert again is encoding
    whole, _ = encodings.encode(pipeline, image, frame, region)
    assert whole is not encoding
    assert encodings.num_encoded == 2


def test_a_region_outside_the_image_is_an_error_that_names_the_parameter(pipeline):
    image = CameraImage("front", make_image(pattern(100, 100)))
    with pytest.raises(ImageError, match=r"cameras\.front\.roi is \[50, 50, 60, 10\].*100 x 100"):
        Encodings(1).encode(pipeline, image, None, SourceRegion(50, 50, 60, 10))


def test_a_frame_is_read_and_encoded_once_for_all_questions(pipeline):
    encodings = Encodings(1)
    frame = stored(make_image(pattern()))
    image = encodings.read(frame)
    first, spent = encodings.encode(pipeline, image, frame, None)
    again, spent_again = encodings.encode(pipeline, encodings.read(frame), frame, None)

    assert encodings.read(frame) is image
    assert again is first
    assert encodings.num_encoded == 1
    assert spent.vision_encode > 0
    assert spent_again.vision_encode == spent_again.preprocess == 0
    part, _ = encodings.encode(pipeline, image, frame, SourceRegion(0, 0, 64, 64))
    assert part is not first
    assert encodings.num_encoded == 2


def test_only_the_newest_frames_are_remembered(pipeline):
    encodings = Encodings(1)
    frames = [stored(make_image(pattern(64, 64)), number) for number in range(1, 5)]
    for frame in frames:
        encodings.encode(pipeline, encodings.read(frame), frame, None)
    assert len(encodings._known) == 2
    encodings.read(frames[0])
    encodings.encode(pipeline, encodings.read(frames[0]), frames[0], None)
    assert encodings.num_encoded == 5
    encodings.clear()
    assert len(encodings._known) == 0
