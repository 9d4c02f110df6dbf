"""Exports that stop halfway: what is left does not load, and the next run goes on with it."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoints import PROMPT

from edge_atp.errors import ArtifactError
from edge_atp.runtime.model_dir import UNFINISHED, ModelDirectory
from export import recipe
from export.__main__ import main
from export.graph import GraphBuilder
from export.journal import Journal
from export.settings import ExportSettings
from export.staging import staging_folder


@pytest.fixture
def settings(checkpoint: Path, text_tower: Path) -> ExportSettings:
    return ExportSettings(
        checkpoint,
        text_tower=str(text_tower),
        prompt=PROMPT,
        max_text_tokens=64,
        max_kv=96,
        compare=False,
    )


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the graphs that are written, in order."""
    names: list[str] = []
    original = GraphBuilder.save

    def save(self: GraphBuilder, path: Path) -> None:
        original(self, path)
        names.append(path.name)

    monkeypatch.setattr(GraphBuilder, "save", save)
    return names


def fail_at(monkeypatch: pytest.MonkeyPatch, role: str, error: BaseException) -> None:
    """Half of the graph file is written, then ``error``."""
    original = GraphBuilder.save

    def save(self: GraphBuilder, path: Path) -> None:
        original(self, path)
        if path.stem == role:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            raise error

    monkeypatch.setattr(GraphBuilder, "save", save)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


DISK_FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("error", [DISK_FULL, KeyboardInterrupt()])
def test_goes_on_with_the_finished_graphs(
    settings: ExportSettings, saved: list[str], tmp_path: Path, error: BaseException
) -> None:
    out = tmp_path / "model"
    stop_at("project", settings, out, error)
    left = staging_folder(out)
    assert not out.exists()
    # The half of project.onnx is gone, what was complete before it is there and does not load.
    assert {p.name for p in left.iterdir()} == {
        UNFINISHED, "vision.onnx", "text.onnx", "select_atp.onnx"
    }  # fmt: skip
    with pytest.raises(ArtifactError, match="did not finish"):
        ModelDirectory.open(left)
    saved.clear()
    steps: list[str] = []
    recipe.export_model(settings, out, progress=steps.append)
    assert saved == ["project.onnx", "decoder.onnx"]
    assert "[1/5] vision was finished before" in steps
    assert "[5/5] emitting decoder" in steps
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    whole = recipe.export_model(settings, tmp_path / "whole", progress=lambda step: None)
    assert content(out) == content(whole.path)


def test_stopped_during_the_gates_is_not_loaded_either(
    settings: ExportSettings, saved: list[str], tmp_path: Path
) -> None:
    """All graphs and the manifest are there then, but nothing has been compared."""
    compared = dataclasses.replace(settings, compare=True)
    stopped: list[str] = []

    def stop(sources: object, directory: ModelDirectory, progress: object) -> None:
        with pytest.raises(ArtifactError, match="was not compared"):
            ModelDirectory.open(directory.path)
        stopped.extend(p.name for p in directory.path.iterdir())
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "run_gates", stop)
        with pytest.raises(KeyboardInterrupt):
            recipe.export_model(compared, tmp_path / "model", progress=lambda step: None)
    assert "manifest.json" in stopped
    saved.clear()
    # Whether to compare does not change what the graphs hold.
    recipe.export_model(settings, tmp_path / "model", progress=lambda step: None)
    assert saved == []


@pytest.mark.parametrize("changes", [{"alpha": 0.25}, {"dialect": "prim18"}, {"max_kv": 112}])
def test_other_settings_start_anew(
    settings: ExportSettings, saved: list[str], tmp_path: Path, changes: dict[str, object]
) -> None:
    stop_before_the_decoder(settings, tmp_path / "model")
    saved.clear()
    other = dataclasses.replace(settings, **changes)
    recipe.export_model(other, tmp_path / "model", progress=lambda step: None)
    assert len(saved) == 5


def test_another_checkpoint_starts_anew(
    settings: ExportSettings, saved: list[str], tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(settings.checkpoint, tmp_path / "checkpoint")
    settings = dataclasses.replace(settings, checkpoint=folder)
    stop_before_the_decoder(settings, tmp_path / "model")
    weights = load_file(str(folder / "model.safetensors"))
    name = next(n for n in weights if n.endswith("layers.0.mlp.down_proj.weight"))
    weights[name] = weights[name] * np.float16(2)
    save_file(weights, str(folder / "model.safetensors"), {"format": "pt"})
    saved.clear()
    recipe.export_model(settings, tmp_path / "model", progress=lambda step: None)
    assert len(saved) == 5


def test_a_finished_file_that_was_damaged_is_written_again(
    settings: ExportSettings, saved: list[str], tmp_path: Path
) -> None:
    stop_before_the_decoder(settings, tmp_path / "model")
    vision = staging_folder(tmp_path / "model") / "vision.onnx"
    damaged = bytearray(vision.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    vision.write_bytes(damaged)
    saved.clear()
    recipe.export_model(settings, tmp_path / "model", progress=lambda step: None)
    assert saved == ["vision.onnx", "decoder.onnx"]


def test_journal_cut_off_by_a_crash(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    journal = Journal(tmp_path, "same")
    assert list(tmp_path.iterdir()) == [tmp_path / UNFINISHED]
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
        journal.record(name, name)
    journal.close()
    path = tmp_path / UNFINISHED
    path.write_text(path.read_text()[:-20])
    again = Journal(tmp_path, "same")
    assert again.finished(["a"])
    assert not again.finished(["a", "b"])
    assert not (tmp_path / "b").exists()
    again.close()


def test_two_exports_to_one_place(settings: ExportSettings, tmp_path: Path) -> None:
    folder = staging_folder(tmp_path / "model")
    folder.mkdir()
    journal = Journal(folder, "other")
    with pytest.raises(ArtifactError, match="another export is writing"):
        recipe.export_model(settings, tmp_path / "model", progress=lambda step: None)
    assert folder.is_dir()
    journal.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 KiB; the tiny model needs about 700."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    # Lazily: embedding tables of closed engines stay mapped until they are collected.
    subprocess.run(["umount", "-l", str(folder)], check=True)


def command(settings: ExportSettings, out: Path) -> list[str]:
    arguments = ["--model", str(settings.checkpoint), "--text-tower", settings.text_tower]
    return [*arguments, "--prompt", PROMPT, "--no-compare", "--out", str(out)]


def test_disk_that_is_really_full(
    settings: ExportSettings, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(settings, small_disk / "model")) == 1
    message = " ".join(capsys.readouterr().err.split())
    assert "No space left" in message
    assert "run the same command again" in message
    assert not (small_disk / "model").exists()
    left = staging_folder(small_disk / "model")
    with pytest.raises(ArtifactError):
        ModelDirectory.open(left)
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert main(command(settings, small_disk / "model")) == 0
    assert "vision was finished before" in capsys.readouterr().err
    ModelDirectory.open(small_disk / "model")


def test_disk_full_message(
    settings: ExportSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fail_at(monkeypatch, "decoder", DISK_FULL)
    assert main(command(settings, tmp_path / "model")) == 1
    message = " ".join(capsys.readouterr().err.split())
    assert "No space left" in message
    assert "run the same command again" in message


def stop_at(role: str, settings: ExportSettings, out: Path, error: BaseException) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, role, error)
        with pytest.raises(type(error)):
            recipe.export_model(settings, out, progress=lambda step: None)


def stop_before_the_decoder(settings: ExportSettings, out: Path) -> None:
    stop_at("decoder", settings, out, KeyboardInterrupt())
    lines = (staging_folder(out) / UNFINISHED).read_text().splitlines()
    assert [json.loads(line)["role"] for line in lines[1:]] == [
        "vision", "text", "select_atp", "project"
    ]  # fmt: skip
