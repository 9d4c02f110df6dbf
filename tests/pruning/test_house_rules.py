"""What holds for every interface-level method."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning_cases import (
    BY_VALUE,
    EXACT,
    VARIANTS,
    build,
    make_signals,
    map_arrays,
    to_torch,
    used_fields,
)

from edge_atp.errors import MissingSignalError, ShapeError
from edge_atp.types import PatchGrid, VisualSignals


@pytest.mark.parametrize("variant", EXACT)
@pytest.mark.parametrize("num_kept", [1, 2, 7, 20, 35, 36])
def test_indices_are_unique_ascending_and_as_many_as_asked(variant: str, num_kept: int) -> None:
    selection = build(variant).select(make_signals(), num_kept)

    kept = selection.kept_indices
    assert kept.dtype == np.int64
    assert kept.shape == (num_kept,)
    assert np.all(np.diff(kept) > 0)
    assert kept[0] >= 0
    assert kept[-1] < 36
    assert sorted(selection.order.tolist()) == kept.tolist()


@pytest.mark.parametrize("variant", VARIANTS)
def test_keeping_all_is_the_identity(variant: str) -> None:
    signals = make_signals()
    selection = build(variant).select(signals, 36)

    assert selection.kept_indices.tolist() == list(range(36))
    if selection.merged is not None:
        np.testing.assert_array_equal(selection.merged, signals.patch_features)


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_are_float32_one_a_patch(variant: str) -> None:
    scores = build(variant).select(make_signals(), 5).scores
    if scores is not None:
        assert scores.dtype == np.float32
        assert scores.shape == (36,)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("num_kept", [0, -1, 37])
def test_a_budget_out_of_range_is_refused(variant: str, num_kept: int) -> None:
    with pytest.raises(ShapeError, match=r"num_kept is .* \[1, 36\]"):
        build(variant).select(make_signals(), num_kept)


@pytest.mark.parametrize("num_kept", [9.0, True, "9", None])
def test_a_budget_that_is_no_whole_number_is_refused(num_kept: object) -> None:
    with pytest.raises(ShapeError, match="whole number"):
        build("cls_topk").select(make_signals(), num_kept)
    assert build("cls_topk").select(make_signals(), np.int64(9)).kept_indices.shape == (9,)


@pytest.mark.parametrize("width", [24, 1024])
@pytest.mark.parametrize("variant", ["divprune", "cdpruner", "mmtok"])
def test_vectors_too_long_to_square_are_refused(variant: str, width: int) -> None:
    signals = make_signals(rows=10, cols=20, width=width)
    signals = dataclasses.replace(
        signals,
        image_embeds=signals.image_embeds * np.float32(1e37),
        patch_features=signals.patch_features * np.float32(1e37),
    )
    if width == 24:  # few enough to be computed in float64, where they fit
        assert build(variant).select(signals, 9).kept_indices.shape == (9,)
        return
    with pytest.raises(ShapeError, match=r"overflow|NaN or infinity"):
        build(variant).select(signals, 9)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if used_fields(build(v))])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_signals_are_refused_by_name(variant: str, bad: float) -> None:
    pruner = build(variant)
    for field in used_fields(pruner):
        signals = map_arrays(make_signals(), np.copy)
        getattr(signals, field).reshape(-1)[-1] = bad
        with pytest.raises(ShapeError, match=field):
            pruner.select(signals, 5)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if build(v).needs])
def test_a_missing_signal_is_named_with_its_remedy(variant: str) -> None:
    pruner = build(variant)
    for field in pruner.needs:
        signals = dataclasses.replace(make_signals(), **{field: None})
        with pytest.raises(MissingSignalError, match=rf"{pruner.name} needs .*{field}"):
            pruner.select(signals, 5)
    for group in pruner.needs_one_of:
        optional = [field for field in group if field not in pruner.needs]
        if len(optional) == len(group):
            signals = dataclasses.replace(make_signals(), **dict.fromkeys(group))
            with pytest.raises(MissingSignalError, match=group[0]):
                pruner.select(signals, 5)


def test_signals_must_agree_on_the_number_of_patches() -> None:
    signals = dataclasses.replace(make_signals(), patch_grid=PatchGrid(5, 5))
    with pytest.raises(ShapeError, match="disagree"):
        build("cls_topk").select(signals, 5)
    with pytest.raises(ShapeError, match="none given"):
        build("none").select(VisualSignals(), 5)


def test_a_signal_with_the_wrong_axes_is_refused() -> None:
    signals = dataclasses.replace(make_signals(), text_embed=np.ones((1, 16), np.float32))
    with pytest.raises(ShapeError, match=r"text_embed has shape \(1, 16\)"):
        build("atp").select(signals, 5)


@pytest.mark.parametrize("variant", EXACT)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_and_zero_signals_are_defined(variant: str, value: float) -> None:
    signals = map_arrays(make_signals(), lambda array: np.full_like(array, value))
    selection = build(variant).select(signals, 9)
    assert len(set(selection.kept_indices.tolist())) == 9
    if selection.merged is not None:
        assert np.all(np.isfinite(selection.merged))


@pytest.mark.parametrize("variant", BY_VALUE)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_ties_go_to_the_lowest_index(variant: str, value: float) -> None:
    signals = map_arrays(make_signals(), lambda array: np.full_like(array, value))
    assert build(variant).select(signals, 9).kept_indices.tolist() == list(range(9))


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("variant", BY_VALUE)
def test_of_equal_tokens_the_lower_goes_first(variant: str, backend: str) -> None:
    # 201 tokens, 1024 wide: float32 products with ragged edges, where a BLAS may give equal rows
    # different last bits.
    half = make_signals(rows=1, cols=67, width=1016, seed=4)
    doubled = map_arrays(half, lambda array: array)
    per_patch = ("patch_features", "image_embeds", "patch_embeds", "patch_keys")
    changes = {name: np.tile(getattr(half, name), (3, 1)) for name in per_patch}
    changes |= {
        name: np.tile(getattr(half, name), (1, 3))
        for name in ("cls_attention", "received_attention")
    }
    doubled = dataclasses.replace(doubled, **changes, patch_grid=PatchGrid(3, 67))
    if backend == "torch":
        pytest.importorskip("torch")
        doubled = to_torch(doubled)

    for num_kept in (40, 100):
        order = build(variant).select(doubled, num_kept).order.tolist()
        for index in order:
            if index >= 67:
                assert order.index(index - 67) < order.index(index)


@pytest.mark.parametrize("variant", ["divprune", "trimtokenator", "mmtok", "vispruner", "atp"])
@pytest.mark.parametrize("num_kept", [1, 4, 9, 17])
def test_tokens_along_one_line_tie(variant: str, num_kept: int) -> None:
    # Cosines do not see a token's length, so a token's multiple is as good as the token itself.
    rng = np.random.default_rng(num_kept)
    signals = make_signals(rows=2, cols=12, seed=num_kept)
    source, lengths = rng.integers(0, 12, 24), rng.choice([0.5, 1.0, 2.0, 3.0, 7.0], (24, 1))
    longer = dataclasses.replace(
        signals,
        **{
            name: getattr(signals, name)[source].astype(np.float64)
            for name in ("patch_features", "image_embeds", "patch_embeds")
        },
        cls_attention=signals.cls_attention[:, source],
    )
    lengths[:] = 1.0 if variant == "trimtokenator" else lengths  # its first stage sees lengths
    unequal = dataclasses.replace(
        longer,
        patch_features=longer.patch_features * lengths,
        image_embeds=longer.image_embeds * lengths,
        patch_embeds=longer.patch_embeds * lengths,
    )
    got, expected = (build(variant).select(s, num_kept).order.tolist() for s in (unequal, longer))
    assert got == expected


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize(("num", "width"), [(2, 3), (3, 5), (200, 1000)])
def test_two_that_are_nearest_to_each_other_tie(num: int, width: int, backend: str) -> None:
    # All others are close pairs; 0.1 apart, the last two lie farthest from their nearest.
    rng = np.random.default_rng(num)
    for _ in range(10):
        tokens = rng.standard_normal((num, width)).astype(np.float32)
        pairs = (num - 2) // 2
        tokens[pairs : 2 * pairs] = tokens[:pairs] + np.float32(1e-3)
        tokens[-1] = tokens[-2] + 0.1 * rng.standard_normal(width).astype(np.float32)
        signals = VisualSignals(image_embeds=tokens, text_tokens=tokens[:1])
        if backend == "torch":
            pytest.importorskip("torch")
            signals = to_torch(signals)
        first = int(build("divprune").select(signals, 1).kept_indices[0])
        if num % 2 == 0:
            assert first == num - 2
        if num == 2:
            assert build("trimtokenator").select(signals, 2).order.tolist() == [0, 1]


@pytest.mark.parametrize("variant", EXACT)
def test_zero_vectors_are_defined(variant: str) -> None:
    signals = map_arrays(make_signals(), np.copy)
    for name in ("patch_features", "image_embeds", "patch_embeds", "patch_keys"):
        getattr(signals, name)[[0, 7, 8]] = 0.0
    for num_kept in (1, 9, 30):
        selection = build(variant).select(signals, num_kept)
        assert len(set(selection.kept_indices.tolist())) == num_kept


@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision_is_computed_in_single(variant: str) -> None:
    half = map_arrays(make_signals(), lambda array: array.astype(np.float16))
    single = map_arrays(half, lambda array: array.astype(np.float32))
    got, expected = build(variant).select(half, 9), build(variant).select(single, 9)
    assert got.order.tolist() == expected.order.tolist()
    if expected.merged is not None:
        assert got.merged.dtype == np.float32
        np.testing.assert_array_equal(got.merged, expected.merged)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_torch_half_precision_is_computed_in_single(variant: str, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    half = map_arrays(
        make_signals(), lambda array: torch.from_numpy(array).to(getattr(torch, dtype))
    )
    arrays = {
        field.name: value.float()
        for field in dataclasses.fields(half)
        if isinstance(value := getattr(half, field.name), torch.Tensor)
    }
    got = build(variant).select(half, 9)
    expected = build(variant).select(dataclasses.replace(half, **arrays), 9)
    assert got.order.tolist() == expected.order.tolist()
    assert got.scores is None or got.scores.dtype == torch.float32


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_signals_may_differ_in_precision(variant: str, backend: str) -> None:
    signals = make_signals(rows=12, cols=20, width=300)
    mixed = dataclasses.replace(
        signals,
        text_tokens=signals.text_tokens.astype(np.float64),
        text_embed=signals.text_embed.astype(np.float64),
        cls_attention=signals.cls_attention.astype(np.float64),
        patch_keys=signals.patch_keys.astype(np.float64),
    )
    if backend == "torch":
        pytest.importorskip("torch")
        mixed = to_torch(mixed)
    expected = build(variant).select(signals, 60).kept_indices.tolist()
    assert build(variant).select(mixed, 60).kept_indices.tolist() == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_strided_inputs_give_what_their_copies_give(variant: str) -> None:
    def stretch(array: np.ndarray) -> np.ndarray:
        return np.repeat(np.asfortranarray(array), 2, axis=-1)[..., ::2]

    strided = map_arrays(make_signals(), stretch)
    assert not strided.patch_features.flags.c_contiguous
    got, expected = build(variant).select(strided, 9), build(variant).select(make_signals(), 9)
    assert got.order.tolist() == expected.order.tolist()


@pytest.mark.parametrize("variant", VARIANTS)
def test_inputs_are_left_alone(variant: str) -> None:
    signals, before = make_signals(), make_signals()
    build(variant).select(signals, 9)
    map_arrays(signals, lambda array: array)
    for field in dataclasses.fields(signals):
        value = getattr(signals, field.name)
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, getattr(before, field.name))


@pytest.mark.parametrize("variant", VARIANTS)
def test_head_mean_may_be_taken_before(variant: str) -> None:
    signals = make_signals()
    flat = dataclasses.replace(
        signals,
        cls_attention=signals.cls_attention.mean(axis=0),
        received_attention=signals.received_attention.mean(axis=0),
    )
    got, expected = build(variant).select(flat, 9), build(variant).select(signals, 9)
    assert got.order.tolist() == expected.order.tolist()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("rows", "cols", "width"), [(6, 6, 24), (12, 20, 300)])
def test_torch_agrees_with_numpy(variant: str, rows: int, cols: int, width: int) -> None:
    torch = pytest.importorskip("torch")
    for seed in range(3):
        signals = make_signals(rows, cols, width, seed)
        for num_kept in (1, 9, rows * cols // 2):
            ours = build(variant).select(signals, num_kept)
            theirs = build(variant).select(to_torch(signals), num_kept)
            assert isinstance(theirs.kept_indices, torch.Tensor)
            assert theirs.kept_indices.dtype == torch.int64
            assert theirs.kept_indices.tolist() == ours.kept_indices.tolist()
            for name in ("scores", "merged"):
                if getattr(ours, name) is not None:
                    np.testing.assert_allclose(
                        getattr(theirs, name).numpy(), getattr(ours, name), rtol=1e-4, atol=1e-5
                    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_arrays_on_a_device_choose_the_same(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A stand-in for a GPU: torch tensors that NumPy is not told it could share, so every
    # operation goes through the array API.
    pytest.importorskip("torch")
    for module in ("ops", "rows", "similarity"):
        monkeypatch.setattr(f"edge_atp.pruning.{module}.lies_on_host", lambda array: False)
    for rows, cols, width in ((6, 6, 24), (12, 20, 300)):
        signals = make_signals(rows, cols, width, seed=1)
        for num_kept in (1, 9, rows * cols // 2):
            ours = build(variant).select(signals, num_kept)
            theirs = build(variant).select(to_torch(signals), num_kept)
            assert theirs.kept_indices.tolist() == ours.kept_indices.tolist()
            for name in ("scores", "merged"):
                if getattr(ours, name) is not None:
                    np.testing.assert_allclose(
                        getattr(theirs, name).numpy(), getattr(ours, name), rtol=1e-4, atol=1e-5
                    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_tensors_that_record_gradients_are_fine(variant: str) -> None:
    torch = pytest.importorskip("torch")
    signals = map_arrays(make_signals(), lambda array: torch.from_numpy(array).requires_grad_())
    expected = build(variant).select(make_signals(), 9)
    assert build(variant).select(signals, 9).kept_indices.tolist() == (
        expected.kept_indices.tolist()
    )


@settings(max_examples=40, deadline=None)
@given(
    variant=st.sampled_from(EXACT),
    rows=st.integers(1, 5),
    cols=st.integers(1, 5),
    seed=st.integers(0, 10_000),
    share=st.floats(0.0, 1.0),
)
def test_any_grid_and_any_budget(
    variant: str, rows: int, cols: int, seed: int, share: float
) -> None:
    num_kept = max(1, round(share * rows * cols))
    signals = make_signals(rows, cols, seed=seed)
    selection = build(variant).select(signals, num_kept)
    kept = selection.kept_indices
    assert kept.shape == (num_kept,)
    assert np.all(np.diff(kept) > 0)
    assert set(selection.order.tolist()) == set(kept.tolist())
    again = build(variant).select(signals, num_kept)
    assert again.order.tolist() == selection.order.tolist()


@settings(max_examples=40, deadline=None)
@given(
    variant=st.sampled_from(["cls_topk", "atp", "atp-negated", "prumerge"]),
    seed=st.integers(0, 10_000),
    num_kept=st.integers(1, 36),
)
def test_scores_explain_what_a_ranking_method_keeps(variant: str, seed: int, num_kept: int) -> None:
    selection = build(variant).select(make_signals(seed=seed), num_kept)
    ranking = sorted(range(36), key=lambda i: (-selection.scores[i], i))
    assert selection.order.tolist() == ranking[:num_kept]


def test_pruning_imports_without_torch() -> None:
    code = (
        "import sys, edge_atp.pruning as p;"
        " [p.load(name) for name in p.available()];"
        " assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
