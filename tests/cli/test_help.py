"""Every command's help: each option says what it is, and how a default reads."""

from __future__ import annotations

import argparse
import importlib

import pytest

from edge_atp.cli.main import COMMANDS, main


@pytest.mark.parametrize("command", COMMANDS)
def test_every_argument_is_explained(command):
    module = importlib.import_module(f"edge_atp.cli.{command}")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    for action in parser._actions:
        name = "/".join(action.option_strings) or action.dest
        assert action.help, f"{command} {name} has no help"
        takes_text = action.option_strings and action.nargs != 0 and not action.choices
        assert action.metavar or not takes_text or action.dest == "model", f"{command} {name}"
    # Examples are of the command itself, and no line is wider than those of the sources.
    assert f"  edge-atp {command} " in module.__doc__
    assert max(map(len, module.__doc__.splitlines())) <= 100


def test_the_first_steps_fit_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert all(f"    {command} " in text for command in COMMANDS)
    assert 'edge-atp ask docs/cell.jpg "where is the red box?"' in text
