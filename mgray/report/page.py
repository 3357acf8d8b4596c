"""One self-contained HTML page about one or more runs: no script, no network, light and dark."""

from __future__ import annotations

import html
import importlib.metadata
import itertools
import json
import math
import os
import platform
import shlex
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mgray.errors import DataError
from mgray.report.classes import classes_html
from mgray.report.command import train_command
from mgray.report.compare import Comparison, Row, compare
from mgray.report.phases import PhaseResult, phase_results
from mgray.report.pictures import Picture, draw_pictures
from mgray.report.plots import SERIES
from mgray.report.records import RunRecords, read_run
from mgray.report.style import CSS
from mgray.report.timeline import COUNTED, happenings
from mgray.report.words import factor, magnitude, percent, points, seconds, whole

PACKAGES = ("mgray", "torch", "torchvision", "ray", "av", "numpy")


def write_report(runs: Sequence[Path], out: Path, *, command: str = "") -> Path:
    """Write `report.html` and its pictures as PNG files into the folder `out`; returns the page's path.

    Args:
        runs: folders of runs; the baseline is the first with a constant schedule, else the first.
        out: folder to write to; it is made where it does not exist.
        command: the command that trained these runs, to be shown in the page, e.g. `make demo`.

    Raises:
        DataError: a folder is no run's or named twice, there is none, or `out` cannot be written to.
    """
    comparison = compare([read_run(run) for run in runs])
    make_folder(out)
    pictures = draw_pictures(comparison, out)
    again = f"mgray report {shlex.join(map(str, runs))} --out {shlex.quote(str(out))}"
    page = out / "report.html"
    page.write_text(_page(comparison, pictures, [command] if command else [], again), encoding="utf-8")
    return page


def make_folder(out: Path) -> None:
    """Make the folder of a report.

    Raises:
        DataError: it cannot be made, or not be written to.
    """
    remedy = "give a folder to write the report to"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise DataError("out", str(out), "is no folder", remedy) from None
    except OSError as error:
        raise DataError("out", str(out), f"cannot be made ({error.strerror})", remedy) from None
    if not os.access(out, os.W_OK | os.X_OK):
        raise DataError("out", str(out), "cannot be written to", remedy)


def _page(comparison: Comparison, pictures: Sequence[Picture], commands: Sequence[str], again: str) -> str:
    records = [result.records for group in comparison.groups for result in group.results]
    title = " and ".join(group.label for group in comparison.groups)
    body = [
        f'<p class="eyebrow">mgray report · {time.strftime("%Y-%m-%d %H:%M")}</p>',
        f"<h1>{html.escape(comparison.headline()).replace(comparison.metric, f'<span>{comparison.metric}</span>')}</h1>",
        _tiles(comparison),
        "<h2>Totals</h2>" if comparison.is_alone else "<h2>Comparison</h2>",
        _card(_comparison_table(comparison, comparison.rows()), _notes(comparison)),
        "" if comparison.is_alone else _targets(comparison),
        "<h2>Pictures</h2>" if pictures else "",
        *_pictures(pictures),
        *_classes(comparison),
        "<h2>Phases</h2>",
        _card(*(_phases(run, is_open=run in _firsts(comparison)) for run in records)),
        "<h2>Events</h2>",
        _card(*(_events(run) for run in records)),
        *_broken(records),
        "<h2>Configuration</h2>",
        _card(_differences(comparison), *(_configuration(run) for run in records)),
        "<h2>Reproduce</h2>",
        _card(*(f"<pre>{html.escape(line)}</pre>" for line in [*commands, again]), *(_command(run) for run in records)),
        f"<footer>{html.escape(_versions())}</footer>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>mgray: {html.escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _firsts(comparison: Comparison) -> list[RunRecords]:
    return [group.results[0].records for group in comparison.groups]


def _card(*parts: str) -> str:
    return f'<section class="card">{"".join(parts)}</section>'


def _caption(text: str) -> str:
    return f'<p class="caption">{html.escape(text)}</p>'


def _details(summary: str, content: str, *, is_open: bool = False) -> str:
    return f"<details{' open' if is_open else ''}><summary>{html.escape(summary)}</summary>{content}</details>"


def _table(head: Sequence[str], rows: Sequence[str], kind: str = "") -> str:
    """A table of ready cells: `head` and `rows` are HTML."""
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{"".join(f"<th>{cell}</th>" for cell in head)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(*cells: str) -> str:
    return f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"


def _tiles(comparison: Comparison) -> str:
    """The leading schedule beside the baseline in four figures; nothing where there is no other schedule."""
    leader, base = comparison.leader, comparison.baseline
    if leader is None or leader.best_score is None or base.best_score is None:
        return ""
    reach, near = leader.reach(), leader.reach(comparison.near_share)
    train_s = [statistics.fmean(r.train_s for r in group.results) for group in (leader, base)]
    voxels = [statistics.fmean(r.num_voxels for r in group.results) for group in (leader, base)]
    runs = f", in {len(reach.seconds)} of {len(leader.results)} runs" if reach.num_missed else ""
    gap = leader.best_score - base.best_score
    tiles = [
        (factor(reach.speedup), f"speed-up to the baseline's best accuracy{runs}")
        if reach.speedup
        else (factor(near.speedup), "speed-up to within a standard error of the baseline's best accuracy")
        if near.speedup
        else ("not reached", "the baseline's best accuracy"),
        (f"{'+' if gap >= 0 else ''}{points(gap)}", f"best {comparison.metric}: {percent(leader.best_score)}, baseline {percent(base.best_score)}"),
        (seconds(train_s[0]), f"whole training, baseline {seconds(train_s[1])}"),
        (magnitude(voxels[0]), f"voxels trained on, baseline {magnitude(voxels[1])}"),
    ]  # fmt: skip
    cards = (f'<div class="card"><b>{html.escape(b)}</b><span>{html.escape(text)}</span></div>' for b, text in tiles)
    return f'<div class="tiles">{"".join(cards)}</div>'


def _comparison_table(comparison: Comparison, rows: Sequence[Row]) -> str:
    head = [""]
    for title, number in zip(comparison.titles, itertools.cycle(range(len(SERIES))), strict=False):
        dot = f'<span class="dot" style="background: var(--series-{number})"></span>'
        head.append(dot + html.escape(title))
    lines = [
        f'<tr class="{"key" if row.is_key else ""}"><th>{html.escape(row.label)}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row.cells)
        + "</tr>"
        for row in rows
    ]
    return _table(head, lines)


def _pictures(pictures: Sequence[Picture]) -> list[str]:
    """A card for each; those that stand in each other's place share one, with buttons that need no script."""
    cards = []
    for title, same in itertools.groupby(pictures, key=lambda picture: picture.title):
        shown = list(same)
        head = f"<h3>{html.escape(title)}</h3>{_caption(shown[0].caption)}"
        if len(shown) == 1:
            cards.append(_card(head, _scrolled(shown[0].svg)))
            continue
        buttons = "".join(
            f'<input type="radio" name="over" id="over-{i}"{"" if i else " checked"}><label for="over-{i}">{html.escape(p.choice)}</label>'
            for i, p in enumerate(shown)
        )
        panes = "".join(f"<div>{_scrolled(picture.svg)}</div>" for picture in shown)
        cards.append(
            _card(head, f'<div class="choice"><span>over</span>{buttons}<div class="panes">{panes}</div></div>')
        )
    return cards


def _scrolled(svg: str) -> str:
    """A picture that keeps a readable size on a phone."""
    return f'<div class="scroll picture">{svg}</div>'


def _targets(comparison: Comparison) -> str:
    text = (
        "Training time to several shares of the baseline's best accuracy, and how many times sooner than the baseline."
    )
    table = _comparison_table(comparison, comparison.target_rows())
    return f"<h2>Time to accuracy</h2>{_card(_caption(text), table)}"


def _notes(comparison: Comparison) -> str:
    return f'<ul class="notes">{"".join(f"<li>{html.escape(note)}</li>" for note in comparison.notes())}</ul>'


def _classes(comparison: Comparison) -> list[str]:
    """The last validation of each run by class; nothing where none was recorded."""
    found = [
        _details(result.records.name, content, is_open=result is group.results[0])
        for group in comparison.groups for result in group.results if (content := classes_html(result.records))
    ]  # fmt: skip
    return ["<h2>Classes</h2>", _card(*found)] if found else []


def _phases(run: RunRecords, *, is_open: bool) -> str:
    phases = phase_results(run)
    if not phases:
        return _details(run.name, _caption("No step has been trained yet."), is_open=is_open)
    head = ["phase", "stage", "epochs", "frames", "crops", "clips", "lr", "steps", "time", "clips/s",
            "voxels/s", "data wait"]  # fmt: skip
    is_sampled = any(not math.isnan(phase.cpu_share) for phase in phases)
    is_gpu = any(not math.isnan(phase.gpu_share) for phase in phases)
    head += ["CPU"] * is_sampled + ["GPU"] * is_gpu
    note = _caption(
        "CPU is the share of all cores of rank 0's node that were busy, GPU that of rank 0's GPU; means of samples."
    )
    note = note if is_sampled else ""
    return _details(
        run.name,
        note
        + _table(head, [_row(*_phase_cells(phase, is_sampled=is_sampled, is_gpu=is_gpu)) for phase in phases], "dense"),
        is_open=is_open,
    )


def _phase_cells(phase: PhaseResult, *, is_sampled: bool, is_gpu: bool) -> tuple[str, ...]:
    plan = phase.planned
    first, last = plan["first_epoch"], plan["last_epoch"]
    steps = whole(phase.num_steps)
    return (
        str(phase.index),
        "-" if plan["stage"] is None else str(plan["stage"]),
        f"{first} to {last}" if last > first else str(first),
        _levels(phase.frame_levels),
        _levels(phase.crop_levels),
        _levels(phase.clip_levels[::-1]),
        f"{plan['lr']:.4g}",
        steps if phase.num_steps == plan["num_steps"] else f"{steps} of {plan['num_steps']:,}",
        seconds(phase.duration_s),
        f"{phase.clips_per_s:,.1f}",
        magnitude(phase.voxels_per_s),
        percent(phase.wait_share),
        *([percent(phase.cpu_share)] if is_sampled else []),
        *([percent(phase.gpu_share)] if is_gpu else []),
    )


def _levels(levels: Sequence[int]) -> str:
    return " / ".join(map(str, levels))


def _events(run: RunRecords) -> str:
    if not run.events:
        return _details(run.name, _caption("None so far."))
    told = happenings(run)
    rows = [
        _row(str(item.number or ""), seconds(item.wall_s) if item.wall_s > 0 else "0 s", seconds(item.train_s) if item.train_s > 0 else "0 s",
             whole(item.step), str(item.attempt), item.text)
        for item in told
    ]  # fmt: skip
    counts = Counter(event.event for event in run.events)
    parts = [f"{counts[name]} {name}{'s' if counts[name] != 1 else ''}" for name in COUNTED if counts[name]]
    if run.num_repeated:
        parts.append(f"{run.num_repeated} steps trained again after a failure")
    if run.schedule is not None:
        parts.append(
            f"its schedule was amended {'once' if run.schedule.version == 1 else f'{run.schedule.version} times'}"
        )
    state = (
        "finished"
        if run.is_finished
        else f"not finished: {len(run.steps):,} of {run.plan['totals']['num_steps']:,} steps"
    )
    summary = f"{run.name}: {', '.join([state, *parts])}"
    head = ["no.", "wall time", "training time", "step", "attempt", "what happened"]
    return _details(summary, _table(head, rows, "told"), is_open=any(item.number for item in told))


def _broken(runs: Sequence[RunRecords]) -> list[str]:
    """The videos of each run that were left out or replaced, with reasons; nothing where there are none."""
    tables = []
    for run in runs:
        left_out = run.data.broken if run.data is not None else ()
        rows = [_row(path, "ingest", "left out", reason) for path, reason in left_out]
        rows += [
            _row(found.path, f"{found.split}, step {found.step:,}", "replaced" if found.split == "train" else "left out", found.reason)
            for found in run.quarantined
        ]  # fmt: skip
        if rows:
            summary = f"{run.name}: {len(rows)} broken video{'s' if len(rows) > 1 else ''}"
            tables.append(_details(summary, _table(["video", "met in", "what was done", "reason"], rows, "text")))
    return ["<h2>Broken videos</h2>", _card(*tables)] if tables else []


def _differences(comparison: Comparison) -> str:
    """The fields in which the compared schedules differ."""
    firsts = _firsts(comparison)
    if len(firsts) < 2:
        return ""
    trees = [_flatten(run.run.to_json()) for run in firsts]
    rows = [
        _row(key, *(_shown(tree[key]) for tree in trees))
        for key in trees[0]
        if key not in ("name", "storage", "track", "train.seed") and len({_shown(tree[key]) for tree in trees}) > 1
    ]
    head = ["field", *(html.escape(group.label) for group in comparison.groups)]
    return f"<h3>What differs</h3>{_table(head, rows, 'text')}" if rows else _caption("The configurations are equal.")


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(f"({_shown(item)})" if isinstance(item, list | tuple) else _shown(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _configuration(run: RunRecords) -> str:
    data = run.data
    about = (
        _caption(f"{len(data.classes)} classes, {data.num_train:,} training and {data.num_val:,} validation clips; data {data.digest[:12]}, "
                 f"plan {str(run.plan.get('digest', ''))[:12]}")
        if data else ""
    )  # fmt: skip
    return _details(run.name, f"{about}<pre>{html.escape(json.dumps(run.run.to_json(), indent=1))}</pre>")


def _command(run: RunRecords) -> str:
    return _details(f"Train {run.name} alone", f"<pre>{html.escape(train_command(run.run))}</pre>")


def _versions() -> str:
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return f"Written with {', '.join(versions)}; Python {platform.python_version()}; {machine}."
