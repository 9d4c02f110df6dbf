import subprocess
import sys

import pytest

import edge_atp.hf
from edge_atp.errors import ConfigError
from edge_atp.hf.registry import families, family_of, load_family

CHECK = """
import sys
import edge_atp.hf
assert "rclpy" not in sys.modules
assert "transformers" not in sys.modules
loaded = [name for name in edge_atp.hf.families() if f"edge_atp.hf.{name}" in sys.modules]
assert not loaded, loaded
"""


def test_imports_without_ros_and_without_any_family():
    subprocess.run([sys.executable, "-c", CHECK], check=True)


def test_every_file_is_a_family_with_its_model_types():
    assert set(families()) == {
        "blip2",
        "idefics",
        "llava",
        "llava_next",
        "llava_next_video",
        "llava_onevision",
        "qwen2_5_vl",
        "qwen2_vl",
    }
    types = [kind for name in families() for kind in load_family(name).model_types]
    assert len(types) == len(set(types))


def test_an_unknown_model_type_lists_the_families():
    class Config:
        model_type = "fuyu"

    class Model:
        config = Config()

    with pytest.raises(ConfigError, match=r"'fuyu'; supported families: blip2, .* qwen2_vl"):
        family_of(Model())
    assert edge_atp.hf.families() == families()
