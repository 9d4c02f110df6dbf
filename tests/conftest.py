"""Fixtures that several parts share: the shipped model, and a picture of the warehouse cell."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import settings

# The gate says the same about the same code. To search for new examples:
# pytest --hypothesis-profile=search
settings.register_profile("gate", derandomize=True, database=None)
settings.register_profile("search", derandomize=False)
settings.load_profile("gate")

REPOSITORY = Path(__file__).resolve().parents[1]
BAG = REPOSITORY / "launch" / "bags" / "warehouse_cell"


@pytest.fixture(scope="session")
def pipeline():
    """The shipped default model as this machine runs it, loaded once."""
    from edge_atp.pipeline import Pipeline

    loaded = Pipeline.load()
    yield loaded
    loaded.close()


@pytest.fixture(scope="session")
def float_pipeline():
    """The shipped default model in float32: two ways to compute the same must agree closely.

    With activations quantised at run time, by the range of what is computed at once, they do not.
    """
    from edge_atp.config import PipelineConfig
    from edge_atp.pipeline import Pipeline

    loaded = Pipeline.load(PipelineConfig(model="warehouse_tiny:fp32"))
    yield loaded
    loaded.close()


@pytest.fixture(scope="session")
def cell_images():
    """(640x480 RGB uint8) pictures of the recorded cell: its first frame and a much later one."""
    rosbags = pytest.importorskip("rosbags.highlevel", reason="needs the extra 'bags'")
    with rosbags.AnyReader([BAG]) as reader:
        pictures = [c for c in reader.connections if c.msgtype.endswith("CompressedImage")]
        raw = [(connection, data) for connection, _, data in reader.messages(pictures)]
        chosen = [raw[0], raw[len(raw) // 2]]
        messages = [reader.deserialize(data, c.msgtype) for c, data in chosen]
    return [
        cv2.cvtColor(cv2.imdecode(np.asarray(m.data), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        for m in messages
    ]
