"""Command line: ``python -m export --model PATH --out DIR``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from edge_atp.errors import EdgeAtpError
from edge_atp.runtime.model_dir import ModelDirectory
from export.dialects import available
from export.precision import NAMES as PRECISIONS
from export.recipe import export_model
from export.settings import read_settings
from export.staging import staging_folder

_console = Console(stderr=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the exporter; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["tensorrt"]:
        from export.tensorrt.__main__ import main as build

        return build(arguments[1:])
    options = _parser().parse_args(arguments)
    overrides = {
        name: value
        for name, value in vars(options).items()
        if name not in ("model", "out", "overwrite")
    }
    start = time.perf_counter()
    try:
        settings = read_settings(options.model, overrides)
        with _console.status("reading the checkpoint") as status:

            def progress(step: str) -> None:
                _console.log(step)
                status.update(step)

            directory = export_model(
                settings, options.out, overwrite=options.overwrite, progress=progress
            )
    except EdgeAtpError as error:
        _console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        return 1
    except OSError as error:
        _console.print(
            f"[red]error:[/red] the export to {options.out} failed: {error};"
            f" {_resume_hint(options.out)}",
            highlight=False,
            soft_wrap=True,
        )
        return 1
    except KeyboardInterrupt:
        _console.print(f"[red]stopped;[/red] {_resume_hint(options.out)}", highlight=False)
        return 130
    _summarise(directory, time.perf_counter() - start)
    return 0


def _resume_hint(out: Path) -> str:
    folder = staging_folder(out.resolve())
    if not folder.is_dir():
        return "nothing was written"
    return (
        f"what is finished waits in {folder}: run the same command again to go on with it, or"
        " delete that folder"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Export a LLaVA checkpoint to a model directory for edge_atp.runtime.",
        epilog="`python -m export tensorrt DIR` builds TensorRT engines on the device.",
    )
    parser.add_argument("--model", required=True, help="models/<name>.yaml, folder, or hub id")
    parser.add_argument("--out", required=True, type=Path, help="model directory to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.add_argument("--text-tower", help="CLIP text tower: folder, or open_clip:NAME/TAG")
    parser.add_argument("--precision", choices=PRECISIONS)
    parser.add_argument("--dialect", choices=available())
    parser.add_argument(
        "--block-layers", type=int, help="layers per decoder graph, to cut tokens between them"
    )
    parser.add_argument(
        "--vision-groups", type=int, help="layers per vision graph, to cut patches between them"
    )
    parser.add_argument(
        "--vision-cut",
        metavar="LAYER:KEPT",
        help="also write an encoder that keeps KEPT patches behind LAYER's attention (from 0;"
        " several with commas); it runs for methods named cut+NAME, such as cut+atp",
    )
    parser.add_argument("--prompt", help="template with {image} and {question}")
    parser.add_argument("--model-id", help="name written into the manifest")
    parser.add_argument("--max-kv", type=int, help="longest sequence in tokens")
    parser.add_argument("--max-text-tokens", type=int, help="longest prompt without its image")
    parser.add_argument("--embed-layer", type=int, help="hidden state of the joint-space patches")
    parser.add_argument("--alpha", type=float, help="default weight of the question, 0 to 1")
    parser.add_argument("--keep-ratio", type=float, help="default share of visual tokens kept")
    parser.add_argument("--relevance-source", choices=("raw", "negated", "value"))
    parser.add_argument("--accuracy-set", help="labelled data set; gate of quantised exports")
    parser.add_argument(
        "--calibration-set", help="labelled data set that gives the ranges of Q/DQ int8"
    )
    parser.add_argument(
        "--no-compare",
        dest="compare",
        action="store_false",
        default=None,
        help="skip the parity gates, for models whose original does not fit into memory",
    )
    parser.add_argument("--parity-images", help="folder of pictures for the parity gates")
    return parser


def _summarise(directory: ModelDirectory, seconds: float) -> None:
    gates = directory.manifest.parity["gates"]
    if gates:
        table = Table("gate", "worst", "limit")
        for name, gate in gates.items():
            limit = "" if gate["limit"] is None else f"{gate['limit']:.3g}"
            table.add_row(name, f"{gate['value']:.3g}", limit)
        _console.print(table)
    else:
        _console.print("[yellow]not compared with the original model[/yellow]")
    files = directory.manifest.files
    size = sum(spec.bytes for spec in files)
    _console.print(
        f"{directory.path}: {len(files)} files, {size / 1e6:.1f} MB, {seconds:.1f} s",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main())
