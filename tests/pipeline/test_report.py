"""The page of a real small run: every section, every number, hostile names, moved folders, and in a browser."""

import asyncio
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import chromium
import reeltag
from htmlpage import Page
from reeltag.cli.main import main
from reeltag.data.shards import Shards, scan
from reeltag.data.synthetic import SyntheticSettings, write_synthetic
from reeltag.inference.metrics.bootstrap import MIN_POSITIVES
from reeltag.inference.predictor import load
from reeltag.models.tagger import Tagger
from reeltag.pipeline.report.gating import CoOccurrence, gating_gain
from reeltag.pipeline.report.results import FORMAT
from reeltag.training.log import read_rows

HOSTILE = "<img src=x onerror=\"document.title='hit'\"> & "
DATA = SyntheticSettings(train_videos=160, test_videos=48, shards=2, classes=12, rgb=24, audio=8, frames=(5, 12))
RECIPE = """
name = "reported"
seed = 5
budget_mb = 0.3
[data]
train = ["train-*"]
test = ["test-*"]
label_names = "labels.csv"
schema = { features = [{ name = "rgb", width = 24 }, { name = "audio", width = 8 }], classes = 12, max_frames = 12 }
[training]
epochs = 3
batch_size = 16
workers = 0
frames = 12
learning_rate = 5e-3
evaluate_every = 0.5
device = "cpu"
[averaging]
epochs = 1
time_constant = 5
[models.gated]
family = "netvlad"
clusters = 4
hidden = 32
bn_decay = 0.9
head = { prob_gating = true }
[models.plain]
family = "mean"
hidden = 32
bn_decay = 0.9
[distillation]
"""
SECTIONS = ["headline", "frontier", "members", "tables", "curves", "classes", "mistakes", "videos", "calibration"]
SECTIONS += ["gating", "timings", "environment"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reported")
    names = "\n".join(f'{n},"{(HOSTILE + str(n)).replace(chr(34), chr(34) * 2)}"' for n in range(12))
    (folder / "labels.csv").write_text(f"index,name\n{names}\n")
    (folder / "recipe.toml").write_text(RECIPE)
    write_synthetic(folder, DATA)
    run(folder, "run")
    return folder


def run(folder, out, *overrides):
    sets = (part for each in (f"data.root={folder}", *overrides) for part in ("--set", each))
    assert main(["run", str(folder / "recipe.toml"), "--out", str(folder / out), *sets]) == 0


@pytest.fixture(scope="module")
def results(folder):
    return json.loads((folder / "run" / "results.json").read_text())


@pytest.fixture(scope="module")
def page(folder):
    return Page((folder / "run" / "report" / "report.html").read_text())


@pytest.fixture(scope="module")
def both(folder):
    """Another recipe in a folder that has the first one's stages, and the page of the two."""
    shutil.copytree(folder / "run", folder / "other")
    run(folder, "other", "ensemble.trials=3", "budget_mb=0.2")
    assert main(["report", str(folder / "run"), str(folder / "other"), "--out", str(folder / "both.html")]) == 0
    return folder / "both.html"


@pytest.fixture(scope="module")
def tested(folder):
    """The test videos, and what the file says of them."""
    shards = Shards(scan(sorted(folder.glob("test-*")), DATA.record_schema))
    videos = [shards.read(number) for number in range(len(shards))]
    labels = np.zeros((len(videos), 12), bool)
    for row, video in zip(labels, videos, strict=True):
        row[video.labels] = True
    predictor = reeltag.load(folder / "run" / "model.reeltag")
    return videos, labels, np.stack(list(predictor.predict_each([video.frames() for video in videos]))), predictor


def test_every_section_is_there_and_nothing_is_of_elsewhere(page):
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert [name for name in ids if name in SECTIONS] == SECTIONS
    links = page.values("href")
    assert {link.removeprefix("#") for link in links if link.startswith("#")} <= set(ids)
    assert [link for link in links if not link.startswith("#")] == ["data:,"]
    assert not {"src", "srcset", "data", "action", "poster"} & {key for _, found in page.elements for key in found}
    assert not {tag for tag, _ in page.elements} & {"img", "iframe", "object", "form"}


def test_numbers_of_the_page_are_those_of_the_results(folder, page, results):
    text = (folder / "run" / "report" / "report.html").read_text()
    for value in (results["test"]["file"]["gap"], results["holdout_gap"]["file"], results["calibration"]["ece"]):
        assert f"{value:.5f}" in text
    columns = ["class", "AP", "95 % interval", "precision", "recall", "F1", "calibration error"]
    rows = page.table(*columns, "videos in training", "in test")
    counts = zip(*(results["class_counts"][key] for key in ("train", "test")), strict=True)
    classes = {
        " ".join(name.split()): [f"{ap:.5f}", *(f"{count:,}" for count in each)]
        for (name, ap), each in zip(results["test"]["class_ap"], counts, strict=True)
    }
    assert {row[0]: [row[1], *row[-2:]] for row in rows} == classes
    enough = [float(row[1]) for row in rows if int(row[-1]) >= MIN_POSITIVES]
    assert enough == sorted(enough) and len(enough) > 3
    assert all(int(row[-1]) < MIN_POSITIVES for row in rows[len(enough) :])
    assert all((row[2] == "–") == (int(row[-1]) < MIN_POSITIVES) for row in rows)
    heading = ["model", "family", "encoding", "size", "share of size", "weight", "hold-out GAP@20", "test GAP@20"]
    models = {row[0]: row for row in page.table(*heading)}
    assert models.keys() == results["members"].keys()
    for name, member in results["members"].items():
        assert models[name][-1] == f"{member['test']['float32']['gap']:.5f}"
    for entry in results["shipped"]:
        assert models[entry["name"]][5] == f"{entry['weight']:.4f}"
    stages = json.loads((folder / "run" / "timings.json").read_text())
    assert page.table("stage", "seconds") == [[each["stage"], f"{each['seconds']:.1f}"] for each in stages]
    assert len(stages) == len(list((folder / "run" / "stages").iterdir()))


def test_the_paper_s_tables_are_those_of_the_markdown(folder, page):
    lines = (folder / "run" / "report" / "tables.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    shown = [row for table in page.tables for row in table]
    for row in rows:
        assert [cell.replace("-0", "−0") if cell.startswith("-") else cell for cell in row] in shown


def test_counts_calibration_and_videos_are_those_of_the_file(results, tested):
    videos, labels, probabilities, predictor = tested
    assert results["class_counts"]["test"] == labels.sum(0).tolist()
    right, scores = labels.ravel(), probabilities.ravel()  # all 12 classes are among the 20 highest
    error = 0.0
    for low in range(10):
        inside = np.minimum((scores * 10).astype(int), 9) == low
        error += abs(scores[inside].sum(dtype=float) - right[inside].sum())
    assert results["calibration"]["ece"] == pytest.approx(error / scores.size, abs=1e-5)
    above = {
        video.id: float(row[own].min() - row[~own].max())
        for video, row, own in zip(videos, probabilities, labels, strict=True)
        if own.any()
    }
    best, worst = results["videos"]["best"], results["videos"]["worst"]
    assert best[0]["margin"] == pytest.approx(max(above.values()), abs=1e-4)
    assert worst[0]["margin"] == pytest.approx(min(above.values()), abs=1e-4)
    for shown in (*best, *worst):
        assert shown["margin"] == pytest.approx(above[shown["id"]], abs=1e-4)
        (number,) = (n for n, video in enumerate(videos) if video.id == shown["id"])
        frames, names = videos[number].frames(), list(predictor.label_names)
        assert {tag["name"] for tag in shown["tags"] if tag["label"]} == {
            names[n] for n in np.flatnonzero(labels[number])
        }
        segments = np.stack(list(predictor.predict_each([frame[None] for frame in frames])))  # at most 12, one of each
        for tag in shown["tags"]:
            assert tag["segments"] == pytest.approx(segments[:, names.index(tag["name"])], abs=1e-3)
    sets = [tuple(tag["name"] for tag in shown["tags"] if tag["label"]) for shown in (*best, *worst)]
    assert len(set(map(frozenset, sets))) == len(sets)


def test_classes_and_their_mistakes_are_those_of_the_file(folder, page, results, tested):
    videos, labels, probabilities, predictor = tested
    (line,) = (folder / "run" / "classes.json").read_text().splitlines()  # indented it is three times as large
    judged = json.loads(line)
    numbers = {video.id: number for number, video in enumerate(videos)}
    predicted = probabilities >= 0.5
    hits = (predicted & labels).sum()
    assert judged["at_threshold"]["precision_micro"] == pytest.approx(hits / predicted.sum(), abs=1e-5)
    assert judged["at_threshold"]["recall_micro"] == pytest.approx(hits / labels.sum(), abs=1e-5)
    low, high = judged["intervals"]["gap"]
    assert low < results["test"]["file"]["gap"] < high
    for number, (each, scores, truth) in enumerate(zip(judged["classes"], probabilities.T, labels.T, strict=True)):
        said = predicted[:, number]
        assert each["precision"] == pytest.approx((said & truth).sum() / max(1, said.sum()), abs=1e-5)
        assert each["recall"] == pytest.approx((said & truth).sum() / max(1, truth.sum()), abs=1e-5)
        expected = {"false_positives": sorted(scores[~truth])[::-1][:5], "missed": sorted(scores[truth])[:5]}
        for kind, best in expected.items():
            assert [row["score"] for row in each[kind]] == pytest.approx(best, abs=1e-4)
            for row in each[kind]:
                video = numbers[row["id"]]
                assert truth[video] == (kind == "missed")
                assert set(row["labels"]) == set(np.flatnonzero(labels[video]))
                assert row["tags"][0] == [
                    int(probabilities[video].argmax()),
                    pytest.approx(probabilities[video].max(), abs=1e-3),
                ]
    shown = judged["classes"][3]["missed"][0]  # at most 12 frames, so a stretch is one
    frames = videos[numbers[shown["id"]]].frames()
    over_time = np.stack(list(predictor.predict_each([frame[None] for frame in frames])))[:, 3]
    assert shown["strip"] == pytest.approx(over_time, abs=1e-3)
    links = {link for link in page.values("href") if link.startswith("#class-")}
    assert links == {f"#class-{number}" for number in range(12)} and links <= {f"#{name}" for name in page.values("id")}


def test_what_a_gate_changes_is_found_without_it_too(folder, results, tested):
    videos, labels, _, _ = tested
    (path,) = folder.glob("run/stages/average.gated-*/model.reeltag")
    (tagger,) = (module for module in load(path).model.modules() if isinstance(module, Tagger))
    found = []
    for gate in (None, tagger.head.prob_gate):
        tagger.head.prob_gate = gate
        with torch.inference_mode():
            each = [tagger(torch.from_numpy(v.frames()[None].copy()), torch.tensor([v.length])) for v in videos]
        found.append(torch.cat(each).numpy())
    expected = gating_gain(*map(CoOccurrence.of, (labels.astype(np.float32), *found)))
    shown = results["members"]["gated"]["gating"]
    assert shown["pairs"] == expected["pairs"]
    assert shown["error_gated"] == pytest.approx(expected["error_gated"], abs=1e-4)
    assert shown["error_without"] == pytest.approx(expected["error_without"], abs=1e-4)
    assert shown["error_gated"] != pytest.approx(shown["error_without"], abs=1e-4)
    assert "gating" not in results["members"]["plain"]


def test_curves_are_those_of_the_logs(folder, page, results):
    assert results["curves"].keys() == results["members"].keys()
    for name, curve in results["curves"].items():
        logs = [path for step in ("train", "average") for path in folder.glob(f"run/stages/{step}.{name}-*/log.csv")]
        rows = [row for path in logs for row in read_rows(path)]
        assert len(curve["loss"]) == len(rows) <= 200  # so short a training has a row a step
        assert curve["loss"] == pytest.approx([row.loss for row in rows], rel=1e-4)
        assert curve["epoch"] == [row.epoch for row in rows]
        assert curve["holdout_gap"] == [row.holdout_gap for row in rows]
        assert sum(gap is not None for gap in curve["holdout_gap"]) > 3
    charts = [found.get("aria-label") for tag, found in page.elements if tag == "svg"]
    assert {"training loss by epoch", "hold-out GAP@20 by epoch"} <= set(charts)
    text = (folder / "run" / "report" / "report.html").read_text()
    assert "MB, logarithmic</text>" in text and "training loss, logarithmic</text>" in text


def test_a_run_without_gates_and_curves_has_no_such_section(folder, tmp_path):
    shutil.copy(folder / "run" / "recipe.json", tmp_path)
    shutil.copy(folder / "run" / "timings.json", tmp_path)
    shutil.copy(folder / "run" / "classes.json", tmp_path)
    found = json.loads((folder / "run" / "results.json").read_text())
    for member in found["members"].values():
        member.pop("gating", None)
    (tmp_path / "results.json").write_text(json.dumps(found | {"curves": {}}))  # moved away from its stages, too
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    ids = Page((tmp_path / "page.html").read_text()).values("id")
    assert [name for name in ids if name in SECTIONS] == [s for s in SECTIONS if s not in ("gating", "curves")]


def test_two_runs_beside_each_other(folder, both, results, tested):
    page = Page(both.read_text())
    other = json.loads((folder / "other" / "results.json").read_text())
    rows = page.table("class", "test videos", "run", "other", "change")
    assert len(rows) == 12
    changes = [float(row[4].replace("−", "-")) for row in rows]
    assert changes == sorted(changes, reverse=True)
    names = [" ".join(name.split()) for name, _ in results["test"]["class_ap"]]
    assert {name: int(count) for name, count, *_ in rows} == dict(zip(names, tested[1].sum(0), strict=True))
    for _, _, before, after, change in rows:
        assert float(change.replace("−", "-")) == pytest.approx(float(after) - float(before), abs=1.1e-5)
    numbers = {row[0]: row[1:] for table in page.tables for row in table if len(row) == 4}
    gaps = [each["test"]["file"]["gap"] for each in (results, other)]
    assert numbers["test GAP@20"][:2] == [f"{gap:.5f}" for gap in gaps]
    assert float(numbers["test GAP@20"][2].replace("−", "-")) == pytest.approx(gaps[1] - gaps[0], abs=1e-5)
    changed = {row[0]: row[1:] for row in page.table("key", "run", "other")}
    assert changed == {"budget_mb": ["0.3", "0.2"], "ensemble.trials": [changed["ensemble.trials"][0], "3"]}


def refused(capsys, *arguments):
    assert main(["report", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_a_report_of_a_run_at_work_says_that_it_is_old(folder, tmp_path, capsys):
    capsys.readouterr()
    program = "import sys; from pathlib import Path; from reeltag.core.storage import locked\n"
    program += "with locked(Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(folder / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout.readline() == b"locked\n"
        assert main(["report", str(folder / "run"), "--out", str(tmp_path / "old.html")]) == 0
        worker.stdin.close()
    assert "a process is working on this run; these are its last results" in capsys.readouterr().err
    assert main(["report", str(folder / "run"), "--out", str(tmp_path / "new.html")]) == 0
    assert "at work" not in capsys.readouterr().err


def test_what_is_no_finished_run_is_refused(folder, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert "not the folder of a run" in refused(capsys, tmp_path / "none", "--out", out)
    (tmp_path / "begun" / "stages").mkdir(parents=True)
    assert "not finished (results.json, recipe.json, timings.json missing)" in refused(
        capsys, tmp_path / "begun", "--out", out
    )
    run = shutil.copytree(folder / "run", tmp_path / "run", ignore=shutil.ignore_patterns("stages"))
    for name, content, said in (
        ("results.json", '{"recipe": "x"}', "another version"),
        ("results.json", '{"format"', "is damaged"),
        ("results.json", f'{{"format": {FORMAT}}}', "is damaged"),
        ("timings.json", '[{"stage": 3}]', "is damaged"),
        ("recipe.json", "[]", "is damaged"),
        ("classes.json", "{}", "is damaged"),
    ):
        whole = (run / name).read_bytes()
        (run / name).write_text(content)
        error = refused(capsys, run, "--out", out)
        assert said in error and f"{run / name}" in error and "reeltag run" in error
        (run / name).write_bytes(whole)
    results = json.loads((run / "results.json").read_text())
    (model, curve), *_ = results["curves"].items()
    for changes, said in (
        ({"class_counts": {**results["class_counts"], "test": [1]}}, "class_counts and test.class_ap have different"),
        ({"curves": {model: {**curve, "loss": curve["loss"][1:]}}}, f"curves.{model}: columns have different lengths"),
    ):
        (run / "results.json").write_text(json.dumps({**results, **changes}))
        assert said in refused(capsys, run, "--out", out)
    (run / "results.json").write_text(json.dumps(results))
    judged = json.loads((run / "classes.json").read_text())
    (run / "classes.json").write_text(json.dumps(judged | {"classes": judged["classes"][1:]}))
    assert "classes.json: is damaged (not the 12 classes" in refused(capsys, run, "--out", out)
    (run / "classes.json").unlink()
    assert "not finished (classes.json missing)" in refused(capsys, run, "--out", out)
    (run / "classes.json").write_text(json.dumps(judged))
    assert not out.exists()
    out.write_text("mine")
    assert "exists already" in refused(capsys, run, "--out", out)
    assert out.read_text() == "mine"


def browse(path, folder, story):
    async def live():
        async with chromium.page(folder / "profile") as tab:
            await story(tab)
            assert tab.requests and set(tab.requests) == {path.as_uri()}
            return tab.complaints

    return asyncio.run(live())


def cells(table, column):
    rows = f"[...document.querySelectorAll('#{table} tbody tr')].filter(row => !row.hidden)"
    return f"{rows}.map(row => row.cells[{column}].textContent)"


@chromium.needed
def test_tables_sort_and_search_and_names_stay_text(folder, results, tmp_path):
    path = folder / "run" / "report" / "report.html"
    names = [" ".join(name.split()) for name, _ in results["test"]["class_ap"]]

    async def story(tab):
        await tab.open(path.as_uri())
        await tab.until("document.querySelectorAll('#class-table thead button').length")
        counts = results["class_counts"]["train"]
        heads = "document.querySelectorAll('#class-table thead th')"
        for order in (True, False):
            await tab.value(f"{heads}[8].querySelector('button').focus()")
            await tab.value("document.activeElement.click()")
            assert await tab.value(cells("class-table", 8)) == [f"{n:,}" for n in sorted(counts, reverse=order)]
            direction = "descending" if order else "ascending"
            assert await tab.value(f"{heads}[8].getAttribute('aria-sort')") == direction
        await tab.value("document.querySelector('#class-table tbody a').click()")
        await tab.until("document.querySelectorAll('.mistakes details[open]').length == 1")
        assert await tab.value("location.hash == '#' + document.querySelector('details[open] > div').id")
        search = "document.querySelector('input[data-table=class-table]')"
        await tab.value(f"{search}.value = 'IMG 11'; {search}.oninput()")
        assert await tab.value(cells("class-table", 0)) == [names[11]]
        assert await tab.value(f"{search}.parentElement.querySelector('output').textContent") == "1 of 12"
        assert await tab.value("document.querySelectorAll('img').length") == 0
        assert await tab.value("document.title") == "reported · reeltag"
        await tab.call("Emulation.setFocusEmulationEnabled", enabled=True)
        await tab.value("document.querySelector('#frontier .point').focus()")
        await tab.until("!tip.hidden")
        assert await tab.value("tip.textContent") == await tab.value("document.activeElement.dataset.tip")
        await tab.value("document.querySelectorAll('#curves .chip')[1].click()")
        chosen = "document.querySelector('#curves .chosen').dataset.name"
        assert await tab.value(chosen) == list(results["curves"])[1]

    assert browse(path, tmp_path, story) == []


@chromium.needed
@pytest.mark.parametrize("which", ["one", "two"])
def test_no_width_overflows_and_both_schemes_can_be_chosen(folder, both, tmp_path, which):
    path = folder / "run" / "report" / "report.html" if which == "one" else both

    async def story(tab):
        for width, scheme in ((400, "light"), (400, "dark"), (1200, "light")):
            await tab.look(width, 900, scheme)
            await tab.open(path.as_uri())
            await tab.until("!document.getElementById('theme').hidden")
            assert await tab.value("document.documentElement.scrollWidth") <= width
            paper = await tab.value("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 300) == (scheme == "dark")
            await tab.value("document.getElementById('theme').click()")
            other = await tab.value("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", other)[:3])) < 300) == (scheme == "light")

    assert browse(path, tmp_path, story) == []
