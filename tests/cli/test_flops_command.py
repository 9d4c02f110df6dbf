"""``edge-atp flops``: shares by text length, other image sizes, and what the model is called."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from edge_atp.cli.flops_tables import print_details, print_shares
from edge_atp.cli.main import main
from edge_atp.flops import MODELS, named, relative_prefill, table, with_visual_tokens

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


def terminal(width: int) -> Console:
    return Console(file=io.StringIO(), width=width, highlight=False)


def lines_of(console: Console, *first: str) -> list[list[str]]:
    """Words of the lines that begin with one of ``first``; none is cut off."""
    text = console.file.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= console.width
    return [line.split() for line in text.splitlines() if line.split()[:1] in [[f] for f in first]]


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (60, "method kept prefill total of dense"),
        (80, "method kept ViT prefill total of dense KV cache"),
        (100, "method kept ViT prefill total of dense decode KV cache"),
        (
            140,
            "method kept mean in LLM ViT projector text tower selection prefill total of dense"
            " decode KV cache",
        ),
    ],
)
def test_a_terminal_shows_the_columns_that_fit(width, columns):
    model = named("llava-1.5-7b")
    rows = table(model, [192, 64], ["atp_progressive", "vtw"], 32, 16, "engine")
    console = terminal(width)
    print_details(console, model, rows, "16 generated, convention engine")
    head = lines_of(console, "method")[0]
    assert head == columns.split()
    text = console.file.getvalue()
    assert "% at 32 text" in text
    assert "both with 32 tokens of text" in " ".join(text.split())
    dense, withdrawn, some, few = lines_of(console, "dense", "vtw", "atp_progressive")
    assert [dense[:2], withdrawn[:2]] == [["dense", "576"], ["vtw", "-"]]
    assert [some[:2], few[:2]] == [["atp_progressive", "192"], ["atp_progressive", "64"]]
    assert all(f"{100 * row.relative:.1f}" in text for row in rows)


def test_many_text_lengths_go_on_below():
    model, lengths = named("llava-1.5-7b"), (8, 16, 32, 64, 128, 256, 512)
    tables = [table(model, [64], ["atp_progressive"], m, 16, "engine") for m in lengths]
    console = terminal(80)
    print_shares(console, model, tables, "engine")
    heads = [
        ["method", "kept", *(word for m in part for word in (str(m), "text"))]
        for part in (lengths[:5], lengths[5:])
    ]
    assert lines_of(console, "method") == 2 * heads
    dense = lines_of(console, "dense,")
    shown = [line[2:] for line in lines_of(console, "atp_progressive")]
    shares = [f"{100 * rows[1].relative_prefill:.1f}" for rows in tables]
    assert shown[0] + shown[1] == shares
    shares = [f"{100 * rows[1].relative:.1f}" for rows in tables]
    assert shown[2] + shown[3] == shares
    # What 100 % are, with its unit.
    assert [line[:3] for line in dense] == 4 * [["dense,", "TFLOPs", "all"]]
    totals = [f"{rows[0].total:.3f}" for rows in tables]
    assert dense[2][3:] + dense[3][3:] == totals


def test_little_is_not_nothing(capsys):
    assert main(["flops", "llava-1.5-7b", "--keep", "64", "--methods", "atp,random"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    text_tower_and_selection = {line[0]: line[5:7] for line in lines if len(line) == 12}
    assert text_tower_and_selection["atp"] == ["0.013", "<0.001"]
    assert text_tower_and_selection["random"] == ["-", "-"]


def card(name: str) -> str:
    return str(Path(__file__).parents[2] / "models" / f"{name}.yaml")


@pytest.mark.parametrize(
    "forms",
    [
        ([], ["warehouse_tiny:fp32"], [card("warehouse_tiny")]),
        (["llava-1.5-7b"], [card("llava-1.5-7b")]),
    ],
)
def test_a_model_may_be_named_in_several_ways(forms, capsys):
    counted = set()
    for words in forms:
        assert main(["flops", *words, "--keep", "64", "--methods", "atp", "--json"]) == 0
        counted.add(capsys.readouterr().out)
    assert len(counted) == 1


def test_what_the_model_cannot_run_is_named(capsys):
    assert main(["flops", "qwen2-vl-2b", "--keep", "64"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "left out: atp, cdpruner, ivtp; qwen2-vl-2b has not" in said
    assert main(["flops", "llava-1.5-7b", "--keep", "64"]) == 0
    assert "left out" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("nope", f"choose one of {', '.join(MODELS)}, warehouse_tiny, or give"),
        (card("blip2-opt-2.7b"), "the dimensions of blip2-opt-2.7b are not known"),
        ("nowhere.yaml", "nowhere.yaml: cannot be read"),
    ],
)
def test_an_unknown_model_lists_what_there_is(model, says, capsys):
    assert main(["flops", model]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name: x\nexport: foo\n", "export is 'foo'; it must be a mapping"),
        (b"name: x\nexport:\n  checkpoint:\n", "checkpoint is None; it must be a text"),
        (b"name: x\ncheckpoint: [a]\n", "checkpoint is ['a']; it must be a text"),
        (b"family: llava\n", "checkpoint is None; it must be a text"),
        (b"name:\ncheckpoint: a\n", "name is None; it must be a text"),
        ("name: caf\u00e9\n".encode("latin-1"), "cannot be read as YAML in UTF-8"),
        (b"name: 2026-13-41\n", "cannot be read as YAML in UTF-8"),
        (b"- name\n", "expected a mapping"),
    ],
)
def test_a_damaged_model_file_names_the_field(tmp_path, capsys, content, says):
    file = tmp_path / "model.yaml"
    file.write_bytes(content)
    assert main(["flops", str(file)]) == 2
    assert f"edge-atp flops: {file}: {says}" in capsys.readouterr().err


def test_a_damaged_config_is_named(tmp_path, capsys):
    (tmp_path / "config.json").write_text("[1]")
    assert main(["flops", str(tmp_path)]) == 2
    assert f"{tmp_path / 'config.json'}: expected an object" in capsys.readouterr().err


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
