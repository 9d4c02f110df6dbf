"""Projections: the roofline by hand, and against published measurements."""

import json

import pytest
from rich.console import Console

from edge_atp.bench.devices import (
    BANDWIDTH_EFFICIENCY,
    COMPUTE_EFFICIENCY,
    DEVICES,
    Device,
    named_device,
)
from edge_atp.bench.projecting import project
from edge_atp.bench.questions import BUILT_IN, DEFAULT_TOKENS
from edge_atp.bench.roofline import layer_weights, project_stages, weights_bytes
from edge_atp.errors import ConfigError
from edge_atp.flops import ModelSpec, Transformer, account, make_plan, named

# Qwen3-VL-2B: 24 ViT layers of 1024, merging 4 patches; 28 layers of 2048 with 8 of 16 KV heads.
QWEN3_VL_2B = ModelSpec(
    "qwen3-vl-2b",
    vision=Transformer(24, 1024, 4096, 16, 16, 64),
    patches=1060,
    patch_values=3 * 2 * 16 * 16,
    projector=(4096, 4096, 2048),
    llm=Transformer(28, 2048, 6144, 16, 8, 128, gated=True),
    vocab=151936,
    has_cls=False,
    merge=4,
)
# TensorRT Edge-LLM 0.10, int4 and fp16 ViT, 292 prompt tokens of which 265 are visual:
# ViT ms, prefill ms, ms per generated token.
PUBLISHED = {
    "agx-orin": (36.2, 45.7, 1e3 / 98.9),
    "orin-nx": (77.1, 93.5, 1e3 / 58.5),
    "orin-nano": (141.3, 167.2, 1e3 / 36.1),
}


def stages(device, model, kept, text, answer, precision="fp16", method="none"):
    plan = make_plan(model, method, None if method == "none" else kept, text)
    costs = account(model, plan, text, answer, "engine")
    return project_stages(device, model, plan, costs, text, answer, precision)


@pytest.mark.parametrize("name", PUBLISHED)
def test_projections_are_near_what_was_published_for_other_software(name):
    found = stages(DEVICES[name], QWEN3_VL_2B, 265, 27, 65, "int4")
    vision, prefill, per_token = PUBLISHED[name]
    assert found["vision"].ms == pytest.approx(vision, rel=0.35)
    assert found["prefill"].ms == pytest.approx(prefill, rel=0.35)
    assert found["decode"].ms / 64 == pytest.approx(per_token, rel=0.35)
    assert (found["vision"].bound, found["decode"].bound) == ("compute", "memory")


def test_the_roofline_by_hand():
    # 1 TFLOP/s and 1 GB/s, so that milliseconds can be read off.
    device = Device("x", "x", 1.0, 2.0, 1.0, 1.0, ())
    llm = Transformer(10, 1000, 4000, 10, 10, 100, gated=True)
    model = ModelSpec("m", Transformer(2, 100, 400, 2, 2, 50), 400, 588, (100, 1000), llm, 1000)
    assert layer_weights(llm) == 4 * 1000**2 + 3 * 1000 * 4000
    found = stages(device, model, 400, 100, 11)
    costs = account(model, make_plan(model, "none", None, 100), 100, 11, "engine")
    weights = 2 * (10 * 16e6 + 1000 * 1000)
    compute_ms = 1e3 * costs.prefill / (1e12 * COMPUTE_EFFICIENCY)
    memory_ms = 1e3 * (weights + 10 * 500 * 4000) / (1e9 * BANDWIDTH_EFFICIENCY)
    assert memory_ms > compute_ms
    assert found["prefill"].bound == "memory"
    assert found["prefill"].ms == pytest.approx(memory_ms)
    # Ten steps read the weights ten times.
    assert found["decode"].ms == pytest.approx(10 * memory_ms, rel=0.02)
    assert found["vision"].bound in ("compute", "overhead")


def test_fewer_bits_are_never_slower_and_weigh_less():
    model = named("llava-1.5-7b")
    totals, memory = [], []
    for precision in ("fp16", "int8", "int4"):
        found = stages(DEVICES["orin-nano"], model, 576, 64, 32, precision)
        totals.append(found["decode"].ms)
        memory.append(weights_bytes(model, precision))
    assert totals == sorted(totals, reverse=True)
    assert memory == sorted(memory, reverse=True)
    assert memory[0] == pytest.approx(2 * 7.06e9, rel=0.03)


def test_every_device_names_its_sources():
    for device in DEVICES.values():
        assert device.sources
        # Tensor cores compute int8 twice as fast as fp16.
        assert device.int8_tops / device.fp16_tflops == pytest.approx(2.0, rel=0.03)
    with pytest.raises(ConfigError, match="orin-nano, orin-nx, agx-orin, thor"):
        named_device("jetson")


@pytest.mark.parametrize("model", ["warehouse_tiny", "llava-1.5-7b"])
def test_everything_written_says_projected(model, tmp_path, capsys):
    report = project(
        model,
        ["agx-orin", "orin-nano"],
        Console(width=160),
        methods=("atp", "none"),
        keeps=(64, 9999),
        precision="fp16",
        questions=BUILT_IN,
        tokens=dict(DEFAULT_TOKENS),
        out=tmp_path,
    )
    shown = capsys.readouterr().out
    assert "PROJECTED" in shown
    assert "not measured" in shown
    assert json.loads((tmp_path / "projection.json").read_text()) == report
    assert report["kind"] == "projected"
    assert (tmp_path / "projection.png").stat().st_size > 10_000
    for kinds in report["results"].values():
        rows = kinds["short"]
        assert list(rows) == ["dense", "atp@64"]
        assert rows["atp@64"]["stages_ms"]["prefill"] <= rows["dense"]["stages_ms"]["prefill"]


def test_a_model_that_does_not_fit_the_device_is_pointed_out(capsys):
    project(
        "llava-1.5-13b",
        ["orin-nano"],
        Console(width=160),
        methods=("atp",),
        keeps=(64,),
        precision="fp16",
        questions=BUILT_IN,
        tokens=dict(DEFAULT_TOKENS),
    )
    assert "do not fit its 8" in capsys.readouterr().out
