"""The report of a replay as one HTML file: no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import Any

from edge_atp.replay.report import MAX_PICTURES, STAGES, Report, write_text

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1b7837; --bad: #b2182b; --dim: #777; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1340px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin: 2.5rem 0 .3rem }
table { border-collapse: collapse; margin: .6rem 0 }
caption { text-align: left; color: var(--dim); white-space: nowrap }
th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
.good { color: var(--good) } .bad { color: var(--bad); font-weight: 600 } .dim { color: var(--dim) }
.questions { display: flex; flex-wrap: wrap; gap: 0 2.5rem } section { max-width: 100% }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; margin: .8rem 0 }
figure { margin: 0; width: 420px } figure img { width: 100%; border-radius: 4px; display: block }
summary { cursor: pointer; color: var(--dim) }
"""


def write_html(report: Report, path: Path) -> None:
    """Write the report as HTML.

    Raises:
        BagError: the file cannot be written.
    """
    write_text(path, render(report))


def render(report: Report) -> str:
    """The report as an HTML document."""
    content = report.as_json()
    title = f"Replay of {content['run'].get('bag', '')}"
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'>",
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        _run(content),
        _overview(content["questions"]),
        _latency(content["latency_s"]),
    ]
    if report.num_pictures_left_out:
        parts.append(
            f"<p class='dim'>{report.num_pictures_left_out} more pictures are left out (at most"
            f" {MAX_PICTURES} are shown).</p>"
        )
    parts.append("<div class='questions'>")
    parts += [_question(question, report) for question in content["questions"]]
    parts.append("</div></body></html>\n")
    return "\n".join(parts)


def _run(content: dict[str, Any]) -> str:
    checked = content["right"] + content["wrong"]
    verdict = f", {content['right']} of {checked} as expected" if checked else ""
    settings = " · ".join(
        f"{escape(str(name))}: {escape(str(value))}" for name, value in content["run"].items()
    )
    return f"<p>{content['num_answers']} answers{verdict}.</p><p class='dim'>{settings}</p>"


def _overview(questions: list[dict[str, Any]]) -> str:
    rows = [
        [
            f"<a href='#{escape(q['query_id'])}'>{escape(q['query_id'])}</a>",
            escape(q["ask"]),
            escape(q["expect"] or ""),
            escape(", ".join(f"{text or '(none)'} ×{n}" for text, n in q["texts"].items())),
            _verdict(q),
        ]
        for q in questions
    ]
    return _table(("", "question", "expected", "answers", ""), rows, "questions")


def _verdict(question: dict[str, Any]) -> str:
    if not question["num_answers"]:
        return "<span class='bad'>never due</span>"
    if question["expect"] is None:
        return ""
    kind = "bad" if question["wrong"] else "good"
    return f"<span class='{kind}'>{question['right']}/{question['num_answers']} right</span>"


def _latency(latency_s: dict[str, dict[str, float]]) -> str:
    rows = [
        [stage, f"{1e3 * times['p50']:.2f}", f"{1e3 * times['p95']:.2f}"]
        for stage, times in latency_s.items()
        if stage in STAGES and times["p95"] > 0
    ]
    caption = "measured time by stage, ms; a frame is encoded once for all questions"
    return _table(("stage", "median", "95 %"), rows, caption, numbers=(1, 2)) if rows else ""


def _question(question: dict[str, Any], report: Report) -> str:
    query_id = question["query_id"]
    mine = [(n, entry) for n, entry in enumerate(report.entries) if entry["query_id"] == query_id]
    expect = escape(question["expect"] or "not known")
    figures = [
        _figure(report.entries[picture.entry], picture.jpeg)
        for picture in report.pictures
        if report.entries[picture.entry]["query_id"] == query_id
    ]
    rows = [_answer_row(entry) for _, entry in mine]
    head = ("second", "answer", "", "kept", "confidence", "ms")
    table = _table(head, rows, "", numbers=(0, 3, 4, 5))
    return (
        f"<section><h2 id='{escape(query_id)}'>{escape(question['ask'])}</h2>"
        f"<div><span class='dim'>expected: {expect}</span> {_verdict(question)}</div>"
        f"<div class='pictures'>{''.join(figures)}</div>"
        f"<details><summary>all {len(mine)} answers</summary>{table}</details></section>"
    )


def _figure(entry: dict[str, Any], jpeg: bytes) -> str:
    encoded = base64.b64encode(jpeg).decode("ascii")
    tokens = entry["tokens"]
    caption = (
        f"{entry['second']:.1f} s: {_mark(entry)} <span class='dim'>{tokens['visual_kept']} of"
        f" {tokens['visual_total']} visual tokens, {escape(entry['method'])}</span>"
    )
    alternative = escape(f"kept patches at {entry['second']:.1f} s: {entry['text']}")
    return (
        f"<figure><img alt='{alternative}' src='data:image/jpeg;base64,{encoded}'>"
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _answer_row(entry: dict[str, Any]) -> list[str]:
    tokens, times, confidence = entry["tokens"], entry["latency_s"], entry["confidence"]
    return [
        f"{entry['second']:.2f}",
        _mark(entry),
        "" if entry["status"] == "FINAL" else escape(f"{entry['status']} {entry['error']}"),
        f"{tokens['visual_kept']}/{tokens['visual_total']}" if tokens else "",
        "" if confidence is None else f"{confidence:.2f}",
        f"{1e3 * times['total']:.1f}" if times else "",
    ]


def _mark(entry: dict[str, Any]) -> str:
    text = escape(entry["text"] or "(none)")
    if entry["right"] is None:
        return text
    return f"<span class='{'good' if entry['right'] else 'bad'}'>{text}</span>"


def _table(
    head: tuple[str, ...], rows: list[list[str]], caption: str, numbers: tuple[int, ...] = ()
) -> str:
    """A table of cells that are HTML already; ``numbers``: columns aligned right."""
    kinds = [" class='number'" if column in numbers else "" for column in range(len(head))]
    lines = [f"<table><caption>{escape(caption)}</caption><tr>"]
    lines += [f"<th{kind}>{name}</th>" for kind, name in zip(kinds, head, strict=True)]
    for row in rows:
        cells = (f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True))
        lines.append(f"</tr><tr>{''.join(cells)}")
    return "".join([*lines, "</tr></table>"])
