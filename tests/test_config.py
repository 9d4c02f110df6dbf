import pytest

from edge_atp.config import PipelineConfig
from edge_atp.errors import ConfigError


def test_yaml_has_the_dataclass_names(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("method: random\nkeep_ratio: 0.5\nseed: 7\n")
    assert PipelineConfig.from_yaml(path) == PipelineConfig(method="random", keep_ratio=0.5, seed=7)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("keep: 0.5", "unknown setting keep; known: .*keep_ratio"),
        ("keep_ratio: 0", r"keep_ratio is 0; it must be in \(0, 1\]"),
        ("keep_ratio: -0.5", "keep_ratio is -0.5"),
        ("alpha: 1.5", r"alpha is 1.5; it must be in \[-1, 1\]"),
        ("alpha: .nan", "alpha is nan"),
        ("seed: true", "seed is True; expected int"),
        ("method: 3", "method is 3; expected str"),
        ("- a list", "expected a mapping"),
        ("a: [", "cannot read settings"),
    ],
)
def test_bad_settings_are_named(tmp_path, text, says):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        PipelineConfig.from_yaml(path)


def test_missing_file_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        PipelineConfig.from_yaml(tmp_path / "absent.yaml")
