"""A benchmark's report as tables for the terminal. Shows what is in the JSON, computes nothing."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edge_atp.bench.fitted import fitted
from edge_atp.bench.hugging_face import NAME as HUGGING_FACE
from edge_atp.bench.stages import STAGES
from edge_atp.evaluation.arms import DENSE

# Columns that a narrow terminal does without, the first ones first.
_FINE_TIMES = ("preprocess", "project", "select", "text", "±", "answer", "decode")
_FINE_COSTS = ("KV cache", "peak RSS", "selection", "prefill of dense", "GFLOPs")
_KIND_TITLES = {"short": "Short answers", "caption": "Captions"}


def print_report(report: dict[str, Any], console: Console) -> None:
    """Machine, times by stage, cost, and what is faster than what."""
    _print_machine(report, console)
    for kind, entry in report["results"].items():
        console.print(f"\n[bold]{_KIND_TITLES[kind]}[/bold] ({_texts(entry)})")
        console.print(_times(console, entry, report["machine"]["is_busy"]))
        console.print(_costs(console, entry, report.get("accuracy", {}).get("exact", {})))
        _print_shares(entry, console)
    if start := report.get("start_up"):
        console.print(
            f"Fresh interpreter to first answer: {start['total_s']:.2f} s"
            f" (imports {start['import_s']:.2f}, load {start['load_s']:.2f}, answer"
            f" {start['first_answer_s']:.2f}; CPU {start['cpu_s']:.2f}; torch"
            f" {'imported' if start['imports_torch'] else 'not imported'})"
        )
    if not report["complete"]:
        console.print("[yellow]stopped early: these are the rounds that were finished[/yellow]")


def _print_machine(report: dict[str, Any], console: Console) -> None:
    machine, model = report["machine"], report["model"]
    console.print(
        f"[bold]{model['model_id']}[/bold], {model['precision']} on {model['backend']},"
        f" {model['num_patches']} visual tokens, {report['settings']['rounds']} rounds"
    )
    console.print(f"[dim]{escape(model['backend_reason'])}[/dim]")
    name = machine["board"] or machine["gpu"] or machine["cpu"]
    console.print(
        f"{name}, {machine['cores']} cores, load {machine['load']} -> {machine['load_at_end']}"
    )
    clock = "CPU time, as the machine is busy" if machine["is_busy"] else "wall time"
    console.print(f"stages: {clock}; ratios: CPU time (wall time)")
    for warning in report["warnings"]:
        console.print(f"[yellow]{warning}[/yellow]")


def _texts(entry: dict[str, Any]) -> str:
    dense = _dense(entry)
    return f"{dense['text_tokens']:g} text tokens, {dense['answer_tokens']:g} generated"


def _dense(entry: dict[str, Any]) -> dict[str, Any]:
    """The dense contender; the first where it did not run."""
    found: dict[str, Any] = entry["contenders"].get(DENSE) or next(
        iter(entry["contenders"].values())
    )
    return found


def _times(console: Console, entry: dict[str, Any], busy: bool) -> Table:
    """Stages in wall time, or in CPU time on a busy machine, where wall time says little."""
    shown = STAGES[:-2]
    heads = ["", "kept", "wall\nms", "±\nms", "CPU\nms", *(f"{stage}\nms" for stage in shown)]
    heads += ["decode\nms/token", "answer\ntok/s, wall"]
    rows = []
    clock = "stages_cpu_ms" if busy else "stages_ms"
    for name, row in entry["contenders"].items():
        stages = row.get(clock)
        cells = ["-"] * (len(shown) + 2)
        if stages:
            cells = [f"{stages[stage]['median']:.2f}" for stage in shown]
            per_token = stages["decode"]["median"] / max(1.0, row["answer_tokens"])
            cells += [f"{per_token:.2f}", f"{row['tokens_per_s']:.0f}"]
        wall = row["wall_ms"]
        rows.append(
            [
                name,
                f"{row['visual_kept']}/{row['visual_total']}",
                f"{wall['median']:.1f}",
                f"{(wall['q75'] - wall['q25']) / 2:.1f}",
                f"{row['cpu_ms']['median']:.1f}",
                *cells,
            ]
        )
    return fitted(console, heads, [rows], _FINE_TIMES)


def _costs(console: Console, entry: dict[str, Any], exact: dict[str, Any]) -> Table:
    # A share of the dense model's FLOPs holds for one length of text.
    text = f"at {_dense(entry)['text_tokens']:g} text"
    heads = {
        "GFLOPs": "",
        "of dense": text,
        "prefill of dense": text,
        "KV cache": "MB",
        "peak RSS": "MB",
        "selection": "/ dense prefill",
        "faster": "than dense",
    }
    if entry.get("against_hugging_face", {}):
        heads["faster than HF"] = ""
    if exact:
        heads["exact match"] = ""
    rows = [
        [name, *(_cost_cells(entry, name, exact).get(head, "-") for head in heads)]
        for name in entry["contenders"]
    ]
    columns = ["", *(f"{head}\n{unit}" for head, unit in heads.items())]
    return fitted(console, columns, [rows], _FINE_COSTS)


def _cost_cells(entry: dict[str, Any], name: str, exact: dict[str, Any]) -> dict[str, str]:
    """What there is to say of one contender, by column."""
    row = entry["contenders"][name]
    cells = {
        "peak RSS": f"{row['peak_rss_mb']:.0f}",
        "faster": _ratio(entry["pruning_share"].get(name)),
        "faster than HF": _ratio(entry.get("against_hugging_face", {}).get(name)),
    }
    if "kv_mb" in row:
        cells["KV cache"] = f"{row['kv_mb']:.2f}"
    if flops := row.get("flops"):
        cells["GFLOPs"] = f"{flops['total'] / 1e9:.2f}"
        if "of_dense" in flops:
            cells["of dense"] = f"{100 * flops['of_dense']:.1f} %"
            cells["prefill of dense"] = f"{100 * flops['prefill_of_dense']:.1f} %"
    if (share := entry["selection_share"].get(name)) is not None:
        cells["selection"] = f"{100 * share:.2f} %"
    if name in exact:
        cells["exact match"] = f"{100 * exact[name]['value']:.1f} %"
    return cells


def _print_shares(entry: dict[str, Any], console: Console) -> None:
    if engine := entry.get("engine_share"):
        same = entry["identical_tokens"]
        console.print(
            f"Engine's share, {HUGGING_FACE} dense over engine dense: {_ratio(engine)};"
            f" tokens {'identical' if same['dense'] else 'differ'}"
            + ("" if same["dense"] or not same["expected"] else " [red](expected identical)[/red]")
        )
    if share := entry["pruning_share"]:
        listed = ", ".join(f"{name} {_ratio(value)}" for name, value in share.items())
        console.print(f"Pruning's share, dense over pruned on this engine: {listed}")


def _ratio(value: dict[str, Any] | None) -> str:
    if not value or not value["wall"]:
        return "-"
    return f"{value['cpu']['median']:.2f} (wall {value['wall']['median']:.2f})"
