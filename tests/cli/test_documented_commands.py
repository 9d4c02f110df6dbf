"""Every command that a document or a help text shows is one that the programs accept."""

from __future__ import annotations

import argparse
import ast
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_DOCUMENTS = {".venv", "out", "build", "install", "log"}

# Packages with programs for people. Those that need a sourced ROS 2 to be imported are not tried.
OURS = ("edge_atp", "export", "benchmarks", "models")

FENCED = re.compile(r"^ *```.*?\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
EXAMPLES = re.compile(r"^examples:\n(.*?)(?:\n\n|\Z)", re.DOTALL | re.MULTILINE)
PROGRAM = re.compile(rf"(?:edge-atp|python -m (?:{'|'.join(OURS)})[\w.]*) .*")


class ParsedError(Exception):
    """The arguments were accepted; nothing ran."""


def documents() -> Iterator[tuple[str, str]]:
    """Where and what: code blocks of every document, examples of every command's help."""
    tops = [path for path in ROOT.iterdir() if path.name not in NOT_DOCUMENTS]
    for path in sorted({*ROOT.glob("*.md"), *(md for top in tops for md in top.rglob("*.md"))}):
        where = path.relative_to(ROOT)
        if not NOT_DOCUMENTS & set(where.parts):
            yield from ((str(where), code) for code in FENCED.findall(path.read_text()))
    for path in sorted((ROOT / "edge_atp" / "cli").glob("*.py")):
        for code in EXAMPLES.findall(ast.get_docstring(ast.parse(path.read_text())) or ""):
            yield str(path.relative_to(ROOT)), code


def command_lines() -> list[tuple[str, str]]:
    """(document, command line) of each program of ours, without comment and what follows it."""
    found = []
    for where, code in documents():
        for line in code.replace("\\\n", " ").splitlines():
            match = PROGRAM.search(line)
            shortened = match and re.search(r"\.\.\.|…", match[0])  # "edge-atp compare ..."
            if match and not shortened:
                command = re.split(r" # |  #|&&|;|\|", match[0].replace("$split", "test"))[0]
                found.append((where, " ".join(command.split())))
    return sorted(set(found))


LINES = command_lines()


def test_the_documents_show_commands():
    assert {where for where, _ in LINES} >= {"README.md", "export/README.md"}
    assert len(LINES) > 60


@pytest.mark.parametrize(("where", "line"), LINES, ids=lambda value: value.replace("/", "."))
def test_the_program_accepts(where, line, monkeypatch):
    words = shlex.split(line)
    module, arguments = ("edge_atp.cli", words[1:])
    if words[0] == "python":
        module, arguments = words[2], words[3:]
    parse = argparse.ArgumentParser.parse_args

    def only_parse(self, *args, **kwargs):
        parse(self, *args, **kwargs)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    for imported in (module, f"{module}.__main__"):  # by another test; runpy warns of it
        monkeypatch.delitem(sys.modules, imported, raising=False)
    try:
        with pytest.raises(ParsedError):
            runpy.run_module(module, run_name="__main__", alter_sys=False)
    except SystemExit as error:
        pytest.fail(f"{where} shows a command that is refused: {line} ({error})")


@pytest.mark.parametrize(("where", "line"), LINES, ids=lambda value: value.replace("/", "."))
def test_the_files_it_names_are_there(where, line):
    for word in shlex.split(line):
        if word.startswith(("docs/", "launch/", "models/", "tests/")):
            assert (ROOT / word).exists(), f"{where} names {word}: {line}"
