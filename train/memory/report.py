"""The report of tests of memory: tables in markdown, and one page of HTML with pictures of the pairs in it.

Owns: words, tables and pictures. Does not know how they were measured.
"""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from train.memory.cases import MemoryTest
from train.memory.scores import Row
from train.memory.tables import METRICS
from train.reports.plots import markdown_row
from worldmodel.files import write_file

TESTS_SHOWN, PAIRS_SHOWN = 3, 3  # of each kind, and of each test
PICTURE_PIXELS = 112
STYLE = """
:root { color-scheme: light dark; }
body { font: 14px/1.5 system-ui, sans-serif; max-width: 100rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #8884; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; min-width: 11rem; }
tr.checkpoint td { font-weight: 600; }
.range { color: #888; font-weight: 400; white-space: nowrap; }
.scroll { overflow-x: auto; }
.pair { display: flex; gap: .9rem; margin: .8rem 0; }
figure { margin: 0; display: flex; gap: 2px; flex-direction: column; }
figure div { display: flex; gap: 2px; }
figcaption { font-size: 12px; max-width: 15rem; }
img { image-rendering: pixelated; display: block; }
.bad { color: #c0392b; }
.good { color: #2e8b57; }
"""


def write_report(out: Path, report: Mapping[str, Any], rows: Sequence[Row], tests: Sequence[MemoryTest]) -> None:
    """Write `report.md` and `report.html`.

    Args:
        out: folder.
        report: the content of `report.json`.
        rows: those of the report, with their pictures.
        tests: that were run.

    Raises:
        StorageError: a file cannot be written.
    """
    write_file(out / "report.md", ("\n".join(markdown_lines(report)) + "\n").encode())
    write_file(out / "report.html", html_page(report, rows, tests).encode())


def figure_text(cell: Mapping[str, Any], metric: str) -> str | None:
    """Return a metric of a cell with its interval as text; None where there is none."""
    if metric not in cell:
        return None
    figure, digits = cell[metric], METRICS[metric].digits
    text = f"{figure['mean']:.{digits}f}"
    return text if figure["low"] is None else f"{text} ({figure['low']:.{digits}f} to {figure['high']:.{digits}f})"


def metrics_of(cells: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the metrics that any of some cells has, in the order of `METRICS`."""
    known = {name for cell in cells for name in cell}
    return [name for name in METRICS if name in known]


def summary_table(report: Mapping[str, Any]) -> list[list[str | None]]:
    """Return the table of all rows: a head, then a line for each."""
    rows: Mapping[str, Any] = report["rows"]
    names = metrics_of(found["overall"] for found in rows.values())
    head: list[str | None] = ["", *(METRICS[name].title for name in names), "passes"]
    lines = [head]
    for title, found in rows.items():
        passes = None if "passes" not in found else "yes" if found["passes"] else "no"
        lines.append([title, *(figure_text(found["overall"], name) for name in names), passes])
    return lines


def metric_table(report: Mapping[str, Any], metric: str, part: str) -> list[list[str | None]]:
    """Return a metric of all rows by the cells of `by_way` or `by_first`: a head, then a line for each."""
    rows: Mapping[str, Any] = report["rows"]
    names = list(dict.fromkeys(name for found in rows.values() for name in found[part]))
    counts = [max(found[part].get(name, {"pairs": 0})["pairs"] for found in rows.values()) for name in names]
    head: list[str | None] = ["", *(f"{name} ({count} pairs)" for name, count in zip(names, counts, strict=True))]
    return [head] + [
        [title, *(figure_text(found[part].get(name, {}), metric) for name in names)] for title, found in rows.items()
    ]


def kind_table(report: Mapping[str, Any], metric: str) -> list[list[str | None]]:
    """Return a metric by kind and distance, of the rows that have it: a head, then a line for each cell."""
    rows = {name: found for name, found in report["rows"].items() if metric in found["overall"]}
    lines: list[list[str | None]] = [["kind, frames between", "pairs / tests", *rows]]
    keys = [(kind, name) for found in rows.values() for kind, cells in found["by_kind"].items() for name in cells]
    for kind, distance in dict.fromkeys(keys):
        cells = [found["by_kind"].get(kind, {}).get(distance, {}) for found in rows.values()]
        size = max(cells, key=lambda cell: cell.get("pairs", 0))
        figures = [figure_text(cell, metric) for cell in cells]
        lines.append([f"{kind}, {distance}", f"{size['pairs']} / {size['tests']}", *figures])
    return lines


def describe(report: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know, in sentences."""
    lines = [
        f"{report['tests']} tests ({report['real_tests']} of the real world) with {report['pairs']} pairs of frames "
        f"that show the same view; {report['seconds']} s. Brackets are 95% intervals over tests."
    ]
    known = metrics_of(found["overall"] for found in report["rows"].values())
    lines += [f"{METRICS[name].title}: {report['meanings'][name]}." for name in known]
    lines += [f"{name} is left out: {reason}." for name, reason in report["skipped"].items()]
    if report["classifier"] is not None:
        facts = report["classifier"]
        judged = "" if facts["is_good_enough"] else ": too few to be believed"
        lines.append(f"The place classifier names {facts['accuracy']:.3f} of held-out real frames{judged}.")
    return lines


def sections(report: Mapping[str, Any]) -> list[tuple[str, list[list[str | None]]]]:
    """Return the tables of a report with their titles."""
    found = [
        ("All pairs", summary_table(report)),
        ("PSNR by the way back", metric_table(report, "psnr", "by_way")),
        ("PSNR by what the first frame is", metric_table(report, "psnr", "by_first")),
        ("PSNR by kind and distance", kind_table(report, "psnr")),
    ]
    if report["real_tests"]:
        found.append(("PSNR to the truth by kind and distance", kind_table(report, "truth_psnr")))
    return found


def markdown_lines(report: Mapping[str, Any]) -> list[str]:
    """Return a report as lines of markdown."""
    lines = ["# Tests of memory", "", *(f"- {line}" for line in describe(report))]
    lines += verdict_lines(report)
    for title, table in sections(report):
        lines += ["", f"## {title}", "", markdown_row(*table[0]), markdown_row(*["---"] * len(table[0]))]
        lines += [markdown_row(*row) for row in table[1:]]
    return [*lines, "", f"`{report['command']}`"] if report["command"] else lines


def verdict_lines(report: Mapping[str, Any]) -> list[str]:
    """Return why rows do not pass, as a list in markdown."""
    lines = [
        f"- {name} does not pass: {'; '.join(f['why_not'])}" for name, f in report["rows"].items() if f.get("why_not")
    ]
    return ["", *lines] if lines else []


def html_page(report: Mapping[str, Any], rows: Sequence[Row], tests: Sequence[MemoryTest]) -> str:
    """Return a report as one page that needs nothing else."""
    parts = ["<h1>Tests of memory</h1>", _verdicts(report)]
    for title, table in sections(report):
        parts += [f"<h2>{html.escape(title)}</h2>", _table(table, report)]
        if title == "All pairs":
            parts += ["<ul>", *(f"<li>{html.escape(line)}</li>" for line in describe(report)), "</ul>"]
    parts.append(
        "<h2>Pairs</h2><p>Left of each two: the first frame, right: the second, which should show the same.</p>"
    )
    for kind, meaning in report["kinds"].items():
        parts.append(f"<h3>{html.escape(kind)}: {html.escape(meaning)}</h3>")
        parts += _pictures(kind, rows, tests)
    parts.append(f"<p><code>{html.escape(report['command'])}</code></p>")
    head = f'<meta charset="utf-8"><title>Tests of memory</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _verdicts(report: Mapping[str, Any]) -> str:
    lines = []
    for name, found in report["rows"].items():
        if found["role"] == "checkpoint":
            word, style = ("passes", "good") if found["passes"] else ("does not pass", "bad")
            reasons = html.escape("; ".join(found["why_not"]))
            lines.append(f'<p><b>{html.escape(name)}</b> <span class="{style}">{word}</span> {reasons}</p>')
    return "".join(lines)


def _table(table: Sequence[Sequence[str | None]], report: Mapping[str, Any]) -> str:
    head = "".join(f"<th>{html.escape(cell or '')}</th>" for cell in table[0])
    body = []
    for row in table[1:]:
        role = report["rows"].get(row[0], {}).get("role", "")
        body.append(f'<tr class="{role}">' + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>")
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(body)}</table></div>'


def _cell(text: str | None) -> str:
    if text is None:
        return "-"
    mean, bracket, interval = text.partition(" (")
    return html.escape(mean) + (f'<br><span class="range">({html.escape(interval)}</span>' if bracket else "")


def _pictures(kind: str, rows: Sequence[Row], tests: Sequence[MemoryTest]) -> list[str]:
    """Return pictures of some pairs of a kind, those far apart: what each world shows of both frames."""
    shown = [row for row in rows if row.role != "control" and (row.accuracy or row.role != "floor")]
    parts = []
    for index in [i for i, test in enumerate(tests) if test.pairs[-1].kind == kind][:TESTS_SHOWN]:
        test = tests[index]
        numbers = [n for n, pair in enumerate(test.pairs) if pair.kind == kind]
        numbers.sort(key=lambda n: -test.pairs[n].distance)
        chosen = numbers[:: max(1, -(-len(numbers) // PAIRS_SHOWN))]
        for number in sorted(chosen):
            pair = test.pairs[number]
            source = "given" if pair.first < test.context else "dreamt"
            figures = [_figure(row, index, number) for row in shown]
            title = f"{test.name}: frames {pair.first} ({source}) and {pair.second}, {pair.way}"
            parts.append(
                f'<p>{html.escape(title)}</p><div class="scroll"><div class="pair">{"".join(figures)}</div></div>'
            )
    return parts


def _figure(row: Row, test: int, number: int) -> str:
    """Return both frames of a pair in one row of a report; nothing where the row has not that pair."""
    found = np.flatnonzero((row.tests == test) & (row.pairs == number))
    if not len(found):
        return ""
    i = int(found[0])
    pictures = "".join(_image(frames[i].numpy()) for frames in (row.firsts, row.seconds))
    likeness = f"{float(row.values['psnr'][i]):.1f} dB"
    truth = float(row.values["truth_psnr"][i])
    likeness += "" if np.isnan(truth) else f", to the truth {truth:.1f}"
    return f"<figure><div>{pictures}</div><figcaption>{html.escape(row.name)}<br>{likeness}</figcaption></figure>"


def _image(frame: np.ndarray) -> str:
    """Return an img element that holds a frame uint8 (H, W, 3)."""
    _, content = cv2.imencode(".png", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    data = base64.b64encode(content.tobytes()).decode()
    return f'<img width="{PICTURE_PIXELS}" height="{PICTURE_PIXELS}" alt="" src="data:image/png;base64,{data}">'
