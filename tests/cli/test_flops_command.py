"""``edge-atp flops``: shares by text length, other image sizes, and what the model is called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_atp.cli.main import main
from edge_atp.flops import named, relative_prefill, with_visual_tokens

CONFIG = {
    "vision_feature_layer": -2,
    "vision_config": {
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 3,
        "image_size": 224,
        "patch_size": 14,
    },
    "text_config": {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": 1024,
    },
}
TABLE_1 = ["flops", "llava-1.5-7b", "--visual-tokens", "256", "--keep", "150", "--methods", "atp"]
TABLE_1 += ["--convention", "papers", "--text-tokens", "10,64,128"]


def checkpoint(folder: Path) -> str:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return str(folder)


def test_atps_table_1_is_a_function_of_the_text(capsys):
    assert main([*TABLE_1, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    atp = [row for row in rows if row["method"] == "atp"]
    assert [row["text_tokens"] for row in atp] == [10, 64, 128]
    published = [0.60, 0.67, 0.72]
    assert [row["relative_prefill"] for row in atp] == pytest.approx(published, abs=0.005)
    for row in rows:
        if row["method"] == "none":
            assert row["relative"] == row["relative_prefill"] == 1.0


def test_shares_are_printed_by_text_length(capsys):
    assert main(TABLE_1) == 0
    text = capsys.readouterr().out
    assert "256 visual tokens, convention papers" in text
    model = with_visual_tokens(named("llava-1.5-7b"), 256)
    shares = [f"{100 * relative_prefill(model, 150, length):.1f}" for length in (10, 64, 128)]
    lines = [line.split() for line in text.splitlines() if line.split()[:1] == ["atp"]]
    assert lines[0] == ["atp", "150", *shares]
    assert len(lines) == 2  # the LLM's prefill, and everything
    assert all(
        float(total) > float(llm) for llm, total in zip(lines[0][2:], lines[1][2:], strict=True)
    )


def test_the_engines_shares_differ_from_the_papers():
    model = with_visual_tokens(named("llava-1.5-7b"), 256)
    counted, done = (relative_prefill(model, 150, 64, c) for c in ("papers", "engine"))
    assert 0.6 < counted < 0.7
    assert counted != done


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("warehouse", "weights"), "warehouse"),
        (("my-llava",), "my-llava"),
        (("arm", "checkpoints", "hf"), "arm"),
        (("models--llava-hf--llava-1.5-7b-hf", "snapshots", "b23ca30"), "llava-1.5-7b-hf"),
    ],
)
def test_a_folder_is_titled_by_the_models_name(tmp_path, capsys, parts, name):
    folder = checkpoint(tmp_path.joinpath(*parts))
    assert main(["flops", folder, "--methods", "random"]) == 0
    assert capsys.readouterr().out.startswith(f"{name}: 256 visual tokens, 64 text tokens")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--text-tokens", "64,-1"], "--text-tokens is 64,-1"),
        (["--text-tokens", "many"], "--text-tokens is 'many'"),
        (["--visual-tokens", "0"], "visual_tokens is 0"),
        (["--visual-tokens", "2881"], "positive multiple of 5"),
        (["--visual-tokens", "100", "--keep", "101"], "1 to 100 visual tokens"),
    ],
)
def test_what_cannot_be_counted_is_refused(words, says, capsys):
    assert main(["flops", "llava-next-7b", *words]) == 2
    assert says in capsys.readouterr().err
