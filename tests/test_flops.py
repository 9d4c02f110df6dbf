"""The compute account, against published figures and against counts by hand."""

from __future__ import annotations

import dataclasses

import pytest

from edge_atp.errors import ConfigError
from edge_atp.flops import (
    MODELS,
    ModelSpec,
    Transformer,
    account,
    decode_flops,
    from_config,
    kv_cache_bytes,
    layer_flops,
    make_plan,
    named,
    prefill_flops,
    projector_flops,
    relative_prefill,
    table,
    text_tower_flops,
    vision_flops,
)
from edge_atp.pruning import available

TERA = 1e12

TINY = ModelSpec(
    name="tiny",
    vision=Transformer(2, 4, 8, 2, 2, 2),
    patches=9,
    patch_values=12,
    projector=(4, 6, 6),
    llm=Transformer(3, 6, 10, 3, 1, 2, gated=True),
    vocab=20,
)


def within(percent: float, value: float):
    return pytest.approx(value * TERA, rel=percent / 100)


def papers(model: str, method: str, num_kept: int | None):
    spec = named(model)
    return account(spec, make_plan(spec, method, num_kept, 512), text_tokens=512)


def test_llava_7b_dense_as_published() -> None:
    costs = papers("llava-1.5-7b", "none", None)
    assert costs.vision == within(2, 0.361)
    assert costs.prefill == within(0.2, 15.003)
    assert costs.total == within(1, 15.364)


def test_llava_7b_top_k_as_published() -> None:
    assert papers("llava-1.5-7b", "cls_topk", 64).prefill == within(0.2, 7.772)


def test_ivtp_as_published() -> None:
    costs = papers("llava-1.5-7b", "ivtp", 64)
    assert costs.vision == within(0.2, 0.202)
    assert costs.prefill == within(0.2, 7.946)
    assert costs.total == within(1, 8.228)


def test_llava_13b_as_published() -> None:
    assert papers("llava-1.5-13b", "none", None).total == within(1, 29.4)
    assert papers("llava-1.5-13b", "cls_topk", 64).total == within(1, 15.4)


@pytest.mark.parametrize(("text_tokens", "relative"), [(10, 0.60), (64, 0.67), (128, 0.72)])
def test_atps_table_depends_on_the_length_of_the_text(text_tokens: int, relative: float) -> None:
    model = dataclasses.replace(named("llava-1.5-7b"), patches=256)
    assert relative_prefill(model, 150, text_tokens) == pytest.approx(relative, abs=0.005)


def test_one_layer_by_hand() -> None:
    spec = Transformer(1, 6, 10, 3, 1, 2, gated=True)
    # Queries and output 6 x 6 each, key and value 6 x 2 each, 5 tokens: 2 * 5 * (72 + 24).
    # Attention 4 * 25 * 6; MLP 2 * 5 * 3 * 60.
    assert layer_flops(spec, 5, 5, causal=False) == 960 + 600 + 1800
    # Causal: 15 of 25 pairs.
    assert layer_flops(spec, 5, 5, causal=True) == 960 + 360 + 1800
    # Three tokens left for the MLP.
    assert layer_flops(spec, 5, 3, causal=False) == 960 + 600 + 1080


def test_parts_by_hand() -> None:
    assert projector_flops(TINY, 9) == 2 * 9 * (24 + 36)
    per_layer = 2 * 10 * 4 * 16 + 4 * 100 * 4 + 2 * 10 * 2 * 32  # CLS included
    assert vision_flops(TINY) == 2 * per_layer
    assert vision_flops(TINY, convention="engine") == 2 * per_layer + 2 * 9 * 12 * 4
    full = layer_flops(TINY.llm, 14, 14, causal=False)
    assert prefill_flops(TINY, [9, 9, 9], 5) == 3 * full + 2 * 14 * 6 * 20
    causal = layer_flops(TINY.llm, 14, 14, causal=True)
    assert prefill_flops(TINY, [9, 9, 9], 5, "engine") == 3 * causal + 2 * 6 * 20


def test_the_papers_formula() -> None:
    model, n = named("llava-1.5-7b"), 576 + 512
    d, m, layers, vocab = 4096, 11008, 32, 32000
    expected = 2 * n * (layers * (4 * d * d + 3 * d * m) + d * vocab) + 4 * n * n * d * layers
    assert prefill_flops(model, [576] * 32, 512) == expected


def test_decode_by_hand() -> None:
    # One step: a token through three layers of 2 * (72 + 24 + 180) - and 9 + 5 + 1 tokens to look
    # at in each of them - and the head.
    step = 3 * (2 * 96 + 2 * 180) + 3 * 4 * 15 * 6 + 2 * 6 * 20
    assert decode_flops(TINY, [9, 9, 9], 5, new_tokens=2) == step
    assert decode_flops(TINY, [9, 9, 9], 5, new_tokens=1) == 0


def test_kv_cache_counts_what_each_layer_holds() -> None:
    # (9 + 9 + 2 visual + 3 * 5 text) * keys and values * 1 head * 2 wide * 2 bytes
    assert kv_cache_bytes(TINY, [9, 9, 2], 5) == 35 * 2 * 2 * 2
    assert kv_cache_bytes(TINY, [9, 9, 2], 5, new_tokens=4) == (35 + 9) * 8
    # LLaVA-1.5-7B: 512 KiB a token in fp16.
    assert kv_cache_bytes(named("llava-1.5-7b"), [1] * 32, 0) == 512 * 1024


def test_text_tower_counts_windows() -> None:
    model = named("llava-1.5-7b")
    assert text_tower_flops(model, windows=2) == 2 * text_tower_flops(model)
    with pytest.raises(ConfigError, match="tiny has no text tower"):
        text_tower_flops(TINY)


def test_staged_methods_pay_for_the_layers_before_the_cut() -> None:
    model = named("llava-1.5-7b")
    fastv = make_plan(model, "fastv", 64, 64)
    assert fastv.llm_tokens == (576, 576, *[64] * 30)
    pyramid = make_plan(model, "pyramiddrop", None, 64)
    assert pyramid.llm_tokens == (*[576] * 8, *[288] * 8, *[144] * 8, *[72] * 8)
    assert make_plan(model, "vtw", None, 64).llm_tokens == (*[576] * 15, *[0] * 17)
    assert pyramid.projected == 576


def test_tokens_made_of_dropped_ones_are_counted() -> None:
    model = named("llava-1.5-7b")
    # 276 are dropped: int(276 * .3) + 1 = 83 are recycled as 9; of 309, 109 go and 4 come back.
    recycling = make_plan(model, "sparsevlm", None, 64).llm_tokens
    assert recycling == (576, 576, *[309] * 4, *[204] * 9, *[113] * 17)
    plain = make_plan(model, "sparsevlm", None, 64, recycle_share=0.0).llm_tokens
    assert plain == (576, 576, *[300] * 4, *[200] * 9, *[110] * 17)
    evit = make_plan(model, "evit", None, 64, layers=(5, 11), rate=0.5)
    assert evit.encoder_tokens[5] == (576, 289)
    assert evit.encoder_tokens[11] == (289, 146)  # ceil(.5 * 289) and the fused one
    assert evit.projected == evit.llm_tokens[0] == 146
    assert make_plan(model, "evit", 576, 64).llm_tokens[0] == 576  # nothing dropped, nothing fused
    assert make_plan(model, "prumerge", 64, 64).llm_tokens[0] == 65
    assert make_plan(model, "prumerge", 64, 64, fuse_rest=False).llm_tokens[0] == 64


def test_in_vit_methods_shorten_the_vit() -> None:
    model = named("llava-1.5-7b")
    tome = make_plan(model, "tome", 64, 64)
    assert tome.encoder_tokens[0] == (576, 554)  # attention sees all, the MLP fewer
    assert tome.encoder_tokens[-1][1] == 64
    ivtp = make_plan(model, "ivtp", 64, 64)
    assert [a for a, _ in ivtp.encoder_tokens[:4]] == [576, 576, 576, 473]
    assert ivtp.llm_tokens[:4] == (120, 120, 120, 103)
    assert ivtp.projected == 120


def test_selecting_after_the_projector_projects_everything() -> None:
    model = named("llava-1.5-7b")
    assert make_plan(model, "divprune", 64, 64).projected == 576
    assert make_plan(model, "atp", 64, 64).projected == 64
    assert make_plan(model, "cdpruner", 64, 64).projected == 64  # compares either; cut before
    assert make_plan(model, "atp", 64, 64).text_tower
    assert not make_plan(model, "cls_topk", 64, 64).text_tower


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_a_table(name: str) -> None:
    model = named(name)
    rows = table(model, keeps=[model.visual_tokens // 8, model.visual_tokens // 4])
    assert rows[0].method == "none"
    assert rows[0].relative == 1.0
    methods = {row.method for row in rows}
    text_free = {"cls_topk", "divprune", "random", "spatial", "fastv", "vtw"}
    assert text_free <= methods
    assert ("atp" in methods) == (model.text is not None)
    for row in rows[1:]:
        assert 0 < row.relative < 1
        assert row.kv_cache_mb <= rows[0].kv_cache_mb


def test_every_method_runs_on_llava() -> None:
    rows = table(named("llava-1.5-7b"), keeps=[64])
    assert {row.method for row in rows} == set(available())


def test_an_engine_does_less_than_the_papers_count() -> None:
    model = named("llava-1.5-7b")
    counted = table(model, [64], ["cls_topk"], text_tokens=512, convention="papers")
    done = table(model, [64], ["cls_topk"], text_tokens=512, convention="engine")
    for a, b in zip(counted, done, strict=True):
        assert b.prefill < a.prefill
        assert b.decode == a.decode


def test_visual_token_counts() -> None:
    assert named("llava-next-7b").visual_tokens == 2880
    assert named("qwen2-vl-7b").visual_tokens == 1024
    assert TINY.visual_tokens == 9


def test_a_checkpoints_config_gives_the_same_account() -> None:
    config = {
        "vision_feature_layer": -2,
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
            "projection_dim": 768,
        },
        "text_config": {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "vocab_size": 32000,
        },
    }
    tower = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "projection_dim": 768,
    }
    assert from_config("llava-1.5-7b", config, tower) == named("llava-1.5-7b")


def test_the_default_models_config_is_understood() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=192,
            intermediate_size=768,
            num_hidden_layers=6,
            num_attention_heads=3,
            image_size=224,
            patch_size=14,
        ),
        text_config=transformers.LlamaConfig(
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=4,
            num_attention_heads=4,
            vocab_size=400,
        ),
        vision_feature_layer=-1,
    )
    model = from_config("warehouse_tiny", config.to_dict())
    assert model.visual_tokens == 256
    assert model.vision.layers == 6
    methods = {row.method for row in table(model, [32])}
    assert {"cls_topk", "divprune", "fastv"} <= methods
    assert "pyramiddrop" not in methods  # cuts at layers 8 to 24 of 4
    with pytest.raises(ConfigError, match="pyramiddrop cuts at layer 24 of the LLM"):
        make_plan(model, "pyramiddrop", 32, 64)
    shallow = make_plan(model, "pyramiddrop", None, 64, layers=(1, 2, 3))
    assert shallow.llm_tokens == (256, 128, 64, 32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: named("llava-2"), "choose one of llava-1.5-7b"),
        (lambda: make_plan(TINY, "atp", 10, 5), "tiny has 1 to 9 visual tokens"),
        (lambda: make_plan(TINY, "cls_topk", None, 5), "give the number of tokens to keep"),
        (lambda: prefill_flops(TINY, [9], 5), "tiny has 3 layers"),
        (lambda: vision_flops(TINY, [(9, 9)]), "runs 2 ViT layers"),
        (lambda: vision_flops(TINY, convention="real"), "papers, engine"),
        (lambda: from_config("m", {"vision_config": {}}), "no text_config"),
        (lambda: from_config("m", {"vision_config": {}, "text_config": {}}), "image_size"),
    ],
)
def test_bad_requests_are_named(call, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()
