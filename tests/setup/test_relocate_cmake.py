"""The wheels' CMake files name their builder's interpreter until they are relocated."""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "setup" / "relocate_cmake.py"

EXPORT = (
    'INTERFACE_INCLUDE_DIRECTORIES "{include};{packages}/numpy/_core/include"\n'
    'INTERFACE_LINK_LIBRARIES "rcutils::rcutils"\n'
)
BUILDER = EXPORT.format(
    include="/opt/python/cp312-cp312/include/python3.12",
    packages="/opt/python/cp312-cp312/lib/python3.12/site-packages",
)


@pytest.fixture
def relocate_cmake(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("relocate_cmake", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    (tmp_path / "share" / "std_msgs" / "cmake").mkdir(parents=True)
    return module


@pytest.fixture
def export_file(relocate_cmake, tmp_path):
    return tmp_path / "share" / "std_msgs" / "cmake" / "export.cmake"


def test_both_folders_become_this_interpreters(relocate_cmake, export_file):
    export_file.write_text(BUILDER)

    assert relocate_cmake.main() == 0
    assert export_file.read_text() == EXPORT.format(
        include=sysconfig.get_path("include"), packages=sysconfig.get_path("platlib")
    )


def test_a_second_run_writes_nothing(relocate_cmake, export_file):
    export_file.write_text(BUILDER)
    relocate_cmake.main()
    before = export_file.stat().st_mtime_ns

    assert relocate_cmake.main() == 0
    assert export_file.stat().st_mtime_ns == before


def test_a_builder_folder_of_another_kind_is_an_error_that_names_the_file(
    relocate_cmake, export_file, capsys
):
    export_file.write_text('set(lib "/opt/python/cp312-cp312/lib/libpython3.12.so")\n')

    assert relocate_cmake.main() == 1
    assert str(export_file) in capsys.readouterr().err
