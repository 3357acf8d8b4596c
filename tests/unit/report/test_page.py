"""The page is whole in itself and names what it shows; the pictures beside it open."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import pytest
import tyro

import mgray.report.page
import mgray.report.pictures
from mgray.config import Run
from mgray.errors import DataError
from mgray.plan.state import Amendment
from mgray.report import read_run, write_report
from mgray.report.command import options, train_command
from mgray.report.compare import compare
from mgray.report.curves import AXES, curves
from mgray.report.plots import STYLE, accuracy_over_time, new_axes, rate_axis, throughput
from tests.unit.report.writer import BASELINE, MULTIGRID, RunWriter

VOID = {"meta", "br", "img", "input", "link", "hr"}


class Checker(HTMLParser):
    """Collects ids and the values that a browser would fetch, and checks that elements nest."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids += [values["id"]] if "id" in values else []
        self.links += [
            values[name] for name in ("src", "href", "xlink:href", "srcset", "data", "action") if name in values
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    baseline = RunWriter(root, "base", BASELINE, step_s=3.0)
    multigrid = RunWriter(root, "grid<b>&$x$", MULTIGRID)
    multigrid.event(0, "start", "2 workers")
    multigrid.steps(0, 6)
    multigrid.attempt = 1
    multigrid.event(4, "resume", "worker <1> lost")
    multigrid.steps(4, multigrid.plan.num_steps)
    multigrid.validate(multigrid.plan.num_steps, 0.6)
    multigrid.event(multigrid.plan.num_steps, "finish")
    return write_report([baseline.train([0.4, 0.6]), multigrid.folder], root / "out", command="make demo")


@pytest.fixture(autouse=True)
def one_axis(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves over one measure only, but for the page of `report`: pictures take seconds."""
    monkeypatch.setattr(mgray.report.pictures, "AXES", mgray.report.pictures.AXES[:1])


def test_page_fetches_nothing(report: Path) -> None:
    text = report.read_text()
    page = Checker()
    page.feed(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert page.links and all(link.startswith("#") for link in page.links)
    assert all(link[1:] in page.ids for link in page.links)
    assert not re.search(r"@import|<script|<link|<iframe", text)
    assert all(inside.startswith("#") for inside in re.findall(r"url\(([^)]*)\)", text))
    assert "prefers-color-scheme: dark" in text


def test_page_says_what_was_measured(report: Path) -> None:
    text = report.read_text()
    headline = re.search(r"<h1>(.*?)</h1>", text)
    assert headline is not None
    num_steps = RunWriter(report.parent, "again", MULTIGRID).plan.num_steps
    assert f"{192 / num_steps:.{2 if 192 / num_steps < 10 else 1}f}x sooner" in re.sub("<.*?>", "", headline[1])
    assert "<b>&$x$" not in text
    assert "grid&lt;b&gt;&amp;$x$" in text
    assert "worker &lt;1&gt; lost" in text
    assert "2 steps trained again after a failure" in text
    for part in ("make demo", "mgray report", "Python 3", "What differs", "plan.long_cycle", "clips/s", "data wait"):
        assert part in text


def test_pictures_open(report: Path) -> None:
    pictures = sorted(report.parent.glob("*.png"))
    names = {picture.stem for picture in pictures}
    curves = {f"curves_{name}" for name in ("training_time", "wall_time", "steps", "clips", "voxels")}
    assert curves | {"accuracy_time", "throughput", "schedule_base"} < names
    assert len(pictures) == 9
    for picture in pictures:
        pixels = matplotlib.image.imread(picture)
        assert pixels.shape[1] == 1350
        assert pixels[..., :3].std() > 0.01


def test_colours_of_the_pictures_follow_the_page(report: Path) -> None:
    text = report.read_text()
    names = set(re.findall(r"var\(--([a-z0-9-]+)\)", text))
    light, dark = text.split("@media (prefers-color-scheme: dark)")[:2]
    for name in names:
        assert f"--{name}:" in light
        assert f"--{name}:" in dark
    assert not re.search(r"(fill|stroke): #(?!none)[0-9a-f]{6}", text[text.index("<svg") :])


def test_one_run_that_has_not_begun(tmp_path: Path) -> None:
    page = write_report([RunWriter(tmp_path, "new", BASELINE).folder], tmp_path / "out")
    assert "new has no validation yet" in page.read_text()
    assert list((tmp_path / "out").glob("*.png")) == []


def test_runs_at_different_points(tmp_path: Path) -> None:
    begun = RunWriter(tmp_path, "begun", BASELINE)
    begun.steps(0, 1)
    new = RunWriter(tmp_path, "new", MULTIGRID)
    write_report([begun.folder, new.folder], tmp_path / "out")
    names = sorted(path.stem for path in (tmp_path / "out").glob("*.png") if not path.stem.startswith("curves"))
    assert names == ["schedule_begun", "throughput"]


def test_a_run_before_its_first_validation_leaves_the_panels_their_size(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    new = RunWriter(tmp_path, "new", MULTIGRID)
    new.steps(0, 3)
    comparison = compare([read_run(RunWriter(tmp_path, "base", BASELINE).train([0.4, 0.5])), read_run(new.folder)])
    with matplotlib.rc_context(STYLE):
        for figure in (curves(comparison, AXES[0]), accuracy_over_time(comparison), throughput(comparison)):
            figure.draw_without_rendering()
            assert min(axes.get_position().height for axes in figure.axes) > 0.15
            assert figure.legends[0].get_texts()[1].get_text() == "new"
    assert not [str(warning.message) for warning in recwarn]


@pytest.mark.parametrize("factors", [(1.0, 0.9), (1.0, 0.3), (1.0, 0.1), (1.0, 0.001), (1.0, 1.0)])
def test_the_labels_of_rates_do_not_overlap(factors: tuple[float, float]) -> None:
    with matplotlib.rc_context(STYLE):
        figure, (axes, _, _) = new_axes(3, 1, 5.2)
        axes.plot([0.03 * factor for factor in factors])
        rate_axis(axes, [0.03 * factor for factor in factors])
        figure.draw_without_rendering()
        boxes = [label.get_window_extent() for label in axes.get_yticklabels() if label.get_text()]
        low, high = axes.get_window_extent().intervaly
        shown = sorted(box.intervaly.tolist() for box in boxes if low <= box.intervaly.mean() <= high)
    assert len(shown) >= 2
    assert all(below[1] <= above[0] for below, above in itertools.pairwise(shown))
    assert not axes.yaxis.get_minorticklabels()


def test_bad_input(tmp_path: Path) -> None:
    run = RunWriter(tmp_path, "run", BASELINE).folder
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is no folder"):
        write_report([run], tmp_path / "file")
    with pytest.raises(DataError, match=r"out = '/proc/mgray': cannot be made"):
        write_report([run], Path("/proc/mgray"))
    with pytest.raises(DataError, match="names no run"):
        write_report([], tmp_path / "out")
    with pytest.raises(DataError, match="no such folder"):
        write_report([run, tmp_path / "nowhere"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_command_gives_the_run_again(tmp_path: Path) -> None:
    run = RunWriter(tmp_path, "my run", MULTIGRID, seed=3).run
    assert tyro.cli(Run, args=options(run), default=Run(plan=BASELINE)) == run
    words = shlex.split(train_command(run).replace("\\\n", " "))
    assert words[:3] == ["mgray", "train", "folder"]
    assert words[3:] and sorted(words[3:]) == sorted(options(run))


def test_report_needs_neither_torch_nor_ray() -> None:
    code = "import sys, mgray.report; assert not {'torch', 'ray', 'av'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of the text: pictures take seconds."""
    monkeypatch.setattr(mgray.report.page, "draw_pictures", lambda comparison, out: ())


@pytest.mark.usefixtures("no_pictures")
def test_broken_videos_are_listed_with_reasons(tmp_path: Path) -> None:
    """Names are text, whatever they hold."""
    writer = RunWriter(tmp_path, "broken", MULTIGRID)
    folder = writer.train([0.5])
    data = json.loads((folder / "data.json").read_text())
    (folder / "data.json").write_text(json.dumps({**data, "broken": [["../x.mp4", "is empty"]]}))
    for sample, name in ((3, "<script>alert(1)</script>.mp4"), (4, "b.mp4"), (3, "again.mp4")):
        writer.line("quarantine", 7, split="train", sample=sample, path=name, reason="does not decode")
    writer.line("quarantine", 9, split="val", sample=0, path="v.mp4", reason="is <b>cut</b> off")
    page = write_report([folder], tmp_path / "out").read_text()
    assert "Broken videos" in page and "broken: 4 broken videos" in page
    assert "<td>../x.mp4</td><td>ingest</td><td>left out</td><td>is empty</td>" in page
    assert "<td>&lt;script&gt;alert(1)&lt;/script&gt;.mp4</td><td>train, step 7</td><td>replaced</td>" in page
    assert "<td>v.mp4</td><td>val, step 9</td><td>left out</td><td>is &lt;b&gt;cut&lt;/b&gt; off</td>" in page
    assert "<script" not in page
    note = "broken: broken videos were met in training (2 train videos replaced by substitutes, 1 val video left out of its scores)"
    assert note in page


HOSTILE = "<script>alert(document.domain)</script>&$\\frac{x$\"'"


def test_hostile_names_are_text(tmp_path: Path) -> None:
    """Names of runs, classes and videos, details of events and fields of the configuration come from outside."""
    writer = RunWriter(tmp_path, "hostile", MULTIGRID, data=HOSTILE)
    folder = writer.train([0.5])
    for file in ("run.json", "data.json"):
        tree = json.loads((folder / file).read_text())
        tree |= {"classes": [HOSTILE, "c1"]} if "classes" in tree else {"name": re.sub(r"[/\\]", "", HOSTILE)}
        (folder / file).write_text(json.dumps(tree))
    writer.event(3, HOSTILE, HOSTILE)
    writer.event(3, "init", HOSTILE)
    writer.line("quarantine", 2, split=HOSTILE, sample=1, path=HOSTILE, reason=HOSTILE)
    text = write_report([folder], tmp_path / "out", command=HOSTILE).read_text()
    page = Checker()
    page.feed(text)
    assert page.open == []
    assert "<script" not in text
    assert "&lt;script&gt;alert(document.domain)" in text
    assert all(link.startswith("#") for link in page.links)


def test_amended_run_shows_both_plans(tmp_path: Path) -> None:
    run = RunWriter(tmp_path, "amended", MULTIGRID)
    run.event(0, "start", "1 workers on cpu")
    run.steps(0, 4)
    run.amend(Amendment("rate", 4, 0.5, "key"), 4)
    run.steps(4, run.plan.num_steps)
    run.event(run.plan.num_steps, "finish")
    text = write_report([run.folder], tmp_path / "out").read_text()
    assert (tmp_path / "out" / "amended_amended.png").is_file()
    assert "Amended plan of amended" in text
    assert "its schedule was amended once" in text
    assert "<td>1</td><td>4.0 s</td><td>4.0 s</td><td>4</td><td>0</td><td>The learning rate is 0.5 times" in text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
def test_opens_in_a_browser(report: Path, tmp_path: Path) -> None:
    """Of the pictures that stand in each other's place one is shown, and light and dark differ."""
    shots = []
    for scheme in (0, 1):
        shot = tmp_path / f"{scheme}.png"
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path}/profile",
                   f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={shot}",
                   "--window-size=600,900", report.as_uri()]  # fmt: skip
        subprocess.run(command, check=True, timeout=90, capture_output=True)
        shots.append(matplotlib.image.imread(shot)[..., :3])
    dark, light = (float(shot.mean()) for shot in shots)
    assert dark < 0.3 < 0.8 < light
    assert shots[1][:, 590:].std() < 0.01  # nothing overflows to the right


def test_classes_of_the_last_validation(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, "one", MULTIGRID, classes=3)
    folder = writer.train([0.5])
    writer.classes(10, confusion=[[0, 0, 6], [0, 1, 2], [2, 2, 1], [9, 0, 1]])
    writer.sample(0, 0.25)
    writer.sample(1, 0.75)
    text = write_report([folder], tmp_path / "out").read_text()
    assert "7 of 9 videos (77.8 %) are taken for what they are" in text
    assert "<tr><td>c0</td><td>c1</td><td>2 of 8</td></tr>" in text
    assert text.count("<title>c0 taken for c1: 2</title>") == 1
    assert (tmp_path / "out" / "confusion_one.png").is_file()
    assert "<th>CPU</th>" in text and "<th>GPU</th>" not in text
    assert re.search(r"<td>50\.0 %</td></tr>", text)


@pytest.mark.usefixtures("no_pictures")
def test_classes_of_several_labels(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, "many", MULTIGRID, classes=3)
    folder = writer.train([0.5])
    writer.classes(10, support=[4, 0, 2], average_precision=[0.75, None, 0.25])
    text = write_report([folder], tmp_path / "out").read_text()
    order = [text.index(f"<tr><td>{name}</td><td>") for name in ("c2", "c0", "c1")]
    assert order == sorted(order)
    assert '<td>2</td><td>25.0 %</td><td><i style="width: 25.0%">' in text
