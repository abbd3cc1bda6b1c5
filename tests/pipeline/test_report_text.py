"""Remarks, notes and explanations in a report, from results made by hand."""

import json
import re
from base64 import b64decode
from copy import deepcopy
from io import BytesIO

import av
import pytest

from clips import number_of, numbered, write_clip
from htmlpage import Page
from reeltag.cli.main import main
from reeltag.pipeline.report.markdown import examples, headline, render
from reeltag.pipeline.report.page import render_run
from reeltag.pipeline.report.paper_tables import render_tables
from reeltag.pipeline.report.remarks import CLEARLY, FEW, remarks
from reeltag.pipeline.report.results import FORMAT, read_run
from reeltag.training.schedule import FORGOTTEN

BINS = [
    {"count": 17_000, "score": 0.02, "share": 0.01},
    {"count": 2_000, "score": 0.35, "share": 0.74},
    {"count": 1_000, "score": 0.95, "share": 0.99},
]
HEADING = ["model", "first", "second", "change"]


def member(gap, like=None):
    scores = {"gap": gap, "hit_at_1": 0.5, "perr": 0.4, "map": 0.3, "bytes": 2_000_000, "seconds": 1.0, "videos": 1000}
    found = {"test": {"float32": scores}, "holdout": {"float32": scores}, "family": "mean", "taught_by": []}
    return {**found, "taught_by": ["mean"], "like": like} if like else found


@pytest.fixture
def results():
    scores = {"gap": 0.5, "hit_at_1": 0.5, "perr": 0.4, "map": 0.3, "videos": 1000}
    names = ["Dog", "Inside, small room", "Animal"]
    tag = {"name": names[1], "score": 0.9, "label": True, "segments": [0.1, 0.2, 0.9]}
    video = {"id": "v", "frames": 3, "margin": 0.4, "tags": [tag]}
    members = {"a": member(0.6), "b": member(0.5), "a-student": member(0.61, "a"), "b-student": member(0.5, "b")}
    return {
        "format": FORMAT,
        "recipe": "told",
        "budget": 4_000_000,
        "bytes": 3_000_000,
        "shipped": [{"name": n, "encoding": "float32", "weight": 0.5, "bytes": 1_500_000} for n in "ab"],
        "holdout_gap": {
            "videos": 400,
            "chosen_on": 401,
            "file": 0.55,
            "file_where_chosen": 0.58,
            "equal_weights": 0.54,
            "random_search": 0.53,
            "members": {"a": 0.52, "b": 0.51},
            "prior": 0.1,
        },
        "frontier": [{"bytes": n * 1_000_000, "chosen": 0.5 + n / 50, "checked": 0.5 + n / 60} for n in (1, 2, 3)],
        "frontier_uncoded": [],
        "left_out": [],
        "evidence": None,
        "teachers": {"mean": [{"models": ["a"], "gap": 0.52}, {"models": ["b"], "gap": 0.51}]},
        "diversity": [{"group": "first-level students", "models": ["a-student", "b-student"], "correlation": 0.625}],
        "test": {"file": scores, "prior": scores, "class_ap": [[name, 0.5] for name in names]},
        "class_counts": {"train": [1, 2, 3], "test": [4, 5, 0]},
        "members": members,
        "examples": [{"id": "v", "tags": [[name, 0.25] for name in names], "labels": names[:2]}],
        "bad_records": {"train": [], "test": []},
        "calibration": {"bins": BINS, "ece": 0.04},
        "videos": {"best": [video], "worst": []},
        "curves": {},
        "environment": {"machine": {"device": "cpu"}, "versions": {}},
    }


AVERAGES = {f"{name}_{mean}": 0.5 for name in ("precision", "recall", "f1") for mean in ("micro", "macro")}
CLASS = {"interval": None, "precision": 0.5, "recall": 0.5, "f1": 0.5, "calibration_error": None, "curve": [0.0] * 20}
CLASS |= {"false_positives": [], "missed": []}
JUDGED = {"at_threshold": {"threshold": 0.5, **AVERAGES}, "intervals": {}, "classes": [CLASS] * 3, "confused": []}


@pytest.fixture
def written(tmp_path):
    def write(results, name="first", recipe=None):
        folder = tmp_path / name
        folder.mkdir()
        contents = {"results": results, "recipe": recipe or {}, "timings": [{"stage": "report", "seconds": 1.0}]}
        contents["classes"] = JUDGED
        for kind, content in contents.items():
            (folder / f"{kind}.json").write_text(json.dumps(content))
        return folder

    return write


def test_the_classes_say_when_they_have_an_interval(results, written):
    folder = written(results)  # as of segments
    assert "tags, without an interval, as the" in render_run(read_run(folder))
    drawn = JUDGED | {"intervals": {"gap": [0.4, 0.6], "map": None}}
    (folder / "classes.json").write_text(json.dumps(drawn))
    assert "with its 95 % interval where at least 10 have the label" in render_run(read_run(folder))


def test_diversity_is_told_of_groups_of_two_or_more(results, written, tmp_path):
    text = render(results)
    assert "| first-level students | a-student, b-student | 0.62500 |" in text
    page = render_run(read_run(written(results)))
    assert "<h3>Diversity</h3>" in page and '<td class="number">0.62500</td>' in page
    alone = results | {"diversity": []}
    assert "Diversity" not in render(alone)
    assert "Diversity" not in render_run(read_run(written(alone, "alone")))


def mistake(name, strip, frames):
    tags = [[0, 0.5], [2, 0.25]]
    return {"id": name, "score": 0.75, "labels": [1], "tags": tags, "frames": frames, "strip": strip}


def test_mistakes_have_pictures_where_the_videos_are(results, written, tmp_path, capsys):
    folder, videos = written(results), tmp_path / "videos"
    missed = [mistake("a.mp4", [0.0, 0.1, 0.9, 0.2], 4), mistake("no video.mp4", [], 1)]
    wrong = [mistake("elsewhere.mp4", [], 1), mistake("../first/results.json", [], 1)]
    classes = [CLASS, {**CLASS, "false_positives": wrong, "missed": missed}, CLASS]
    (folder / "classes.json").write_text(json.dumps(JUDGED | {"classes": classes}))
    videos.mkdir()
    page, command = tmp_path / "page.html", ["report", str(folder), "--videos", str(videos)]
    assert main([*command, "--out", str(page)]) == 2
    assert "videos: has no file that is named as a test video" in capsys.readouterr().err
    write_clip(videos / "a.mp4", 4, pictures=[numbered(number, 160, 120) for number in range(40)])
    (videos / "no video.mp4").write_text("text")
    assert main([*command, "--out", str(page)]) == 0
    error = capsys.readouterr().err
    assert f"{videos}: no picture of 1 video\n  no video.mp4: " in error and "results.json" not in error
    (shown,) = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page.read_text())
    with av.open(BytesIO(b64decode(shown)), format="mjpeg") as container:
        (picture,) = (frame.to_ndarray(format="rgb24") for frame in container.decode(video=0))
    assert number_of(picture) == 25  # of the third second, in its middle
    both = ["report", str(folder), str(folder), "--videos", str(videos), "--out", str(tmp_path / "two.html")]
    assert main(both) == 2
    assert "--videos: adds pictures to the mistakes of one run" in capsys.readouterr().err


def test_nothing_is_remarked_where_all_is_well(results):
    assert remarks(results) == []
    assert "note" not in headline(results)


def test_a_file_of_one_member_is_remarked_where_there_were_others(results):
    alone = results | {"shipped": results["shipped"][:1]}
    (said,) = remarks(alone)
    assert said.startswith("the file holds only a: no ensemble within the budget was better on the hold-out")
    assert "(training.epochs)" in said
    assert f"note          {said}" in headline(alone).splitlines()
    assert "Three kinds of weights" not in render(alone)
    larger = alone | {"frontier": [*alone["frontier"], {"bytes": 5_000_000, "chosen": 0.9, "checked": 0.9}]}
    assert remarks(larger) == [
        "the file holds only a: the best ensemble needs 5.00 MB; raise budget_mb or add smaller quantization.encodings"
    ]
    evidence = {"member": "a", "encoding": "float32", "members": 2, "gain": 0.00123, "spread": 0.00456}
    (said,) = remarks(alone | {"evidence": evidence})
    assert said.startswith("the file holds only a: an ensemble of 2 gained 0.00123 GAP where it was chosen, and chance")
    assert "a difference of 0.00456" in said and "data.holdout" in said
    assert remarks(alone | {"members": {"a": member(0.6)}}) == []


def test_the_ranking_of_candidates_stands_beside_the_gains(results):
    text = render_tables(results)
    assert (
        "Teacher of mean: a, hold-out GAP 0.52000; of 2 combinations the next is b, 0.51000, and the last has 0.51"
        in text
    )
    one = results | {"teachers": {"mean": results["teachers"]["mean"][:1]}}
    assert "Teacher of mean: a, hold-out GAP 0.52000.\n" in render_tables(one)


def test_students_that_are_clearly_worse_are_remarked(results):
    members = results["members"]
    for loss, count in ((CLEARLY * 0.9, 0), (CLEARLY * 1.1, 1)):
        changed = members | {"a-student": member(0.6 - loss, "a"), "b-student": member(0.5 - loss, "b")}
        said = remarks(results | {"members": changed})
        assert len(said) == count
    assert said[0].startswith("students are on average 0.01100 test GAP below")
    assert "distillation.training.epochs" in said[0] and "distillation.dropout" in said[0]


def test_models_trained_too_briefly_for_their_batch_norm_are_remarked(results):
    name, told = next(iter(results["members"].items()))
    for share, said in (
        (FORGOTTEN, []),
        (0.64, [f"up to 64% of the batch-norm averages is still their initial value ({name})"]),
    ):
        changed = results["members"] | {name: told | {"first_statistics": share}}
        found = remarks(results | {"members": changed})
        assert [text.partition(":")[0] for text in found] == said


@pytest.mark.parametrize(
    ("held", "tested", "said"),
    [
        (FEW, FEW, []),
        (1, FEW, ["hold-out GAP of 1 video means little; hold out more (data.holdout)"]),
        (FEW, 3, ["test GAP of 3 videos means little; test on more (data.test)"]),
    ],
)
def test_figures_of_few_videos_are_remarked(results, held, tested, said):
    results["holdout_gap"]["videos"], results["test"]["file"]["videos"] = held, tested
    assert remarks(results) == said


def test_figures_say_what_they_are_of(results):
    said = headline(results)
    assert re.search(r"^hold-out GAP  0\.55000  \(.*; 400 videos not used to choose\)$", said, re.MULTILINE)
    assert re.search(r"^test GAP      0\.50000  \(.*; 1,000 videos\)$", said, re.MULTILINE)
    results["test"]["file"]["map_at_k"] = results["test"]["prior"]["map_at_k"] = 0.3
    assert "; 400 segments not used to choose)" in headline(results)


def test_names_with_commas_stay_apart(results):
    assert examples(results) == [
        "v: Dog 0.25 · Inside, small room 0.25 · Animal 0.25  [labels: Dog · Inside, small room]"
    ]


def test_the_page_explains_its_figures(results, written):
    text = " ".join(render_run(read_run(written(results))).split())
    assert Page(text).table("weights of the file's members", "GAP@20 on the other half") == [
        ["as shipped", "0.55000"],
        ["equal", "0.54000"],
        ["the best of equal and random ones", "0.53000"],
    ]
    assert "one half of the hold-out, 401 videos, and measured on the other, 400 videos" in text
    assert "17,000 of the 20,000 tags, 85 %, have a probability from 0.0 to 0.1" in text
    assert "the point that is furthest from the diagonal is 0.39 away and stands for 2,000 tags" in text
    for term in ("GAP@20", "class prior", "Hit@1", "PERR", "mAP", "mAP, all scores", "calibration error"):
        assert f"<dt>{term}</dt><dd>" in text
    assert "and the 1 class without a test video counts 0" in text
    assert "all_scores = true" in text
    results["test"]["file"]["map_all"] = 0.2
    other = render_run(read_run(written(results, "all")))
    assert "all_scores = true" not in other


def test_tags_over_time_have_an_axis_and_a_legend(results, written):
    page = render_run(read_run(written(results)))
    assert re.search(r"<span>frame 0</span><span>2</span><span>3</span>", page)
    assert 'data-tip="Inside, small room, frame 2: 0.90"' in page
    assert page.count('class="ramp"') == 1
    results["videos"]["best"][0] |= {"frames": 1}
    results["videos"]["best"][0]["tags"][0]["segments"] = []
    page = render_run(read_run(written(results, "still")))
    assert "frame 0" not in page
    assert 'class="ramp"' not in page


@pytest.mark.parametrize("distilled", [True, False])
def test_tables_that_are_missing_are_named(results, written, distilled):
    if not distilled:
        results["members"] = {name: results["members"][name] for name in "ab"}
    page, tables = render_run(read_run(written(results))), render_tables(results)
    assert ("Tables 2, 3, 4</a>" in page) == distilled
    assert ("The paper's Tables 2, 3 and 4</h2>" in page) == distilled
    assert ("The paper's Tables 2 and 4</h2>" in page) != distilled
    for text in (page, tables):
        assert "Table 1 is missing: the recipe has no [averaging]" in text
        assert ("Table 3 is missing: the recipe has no [distillation]" in text) != distilled


def test_models_of_one_name_and_a_frontier_of_one_point_are_told_apart(results, written, tmp_path):
    recipe = {"models": {name: {"family": "mean", "hidden": 8, "dropout": 0.5} for name in "ab"}, "distillation": {}}
    other = deepcopy(recipe)
    other["models"]["a"]["hidden"], other["distillation"]["dropout"] = 16, 0.2
    folders = [
        written(results, "first", recipe),
        written(results | {"frontier": results["frontier"][-1:]}, "second", other),
    ]
    assert main(["report", *map(str, folders), "--out", str(tmp_path / "page.html")]) == 0
    page = Page((tmp_path / "page.html").read_text())
    assert [row[0] for row in page.table(*HEADING)] == [
        "a another configuration: hidden 8 → 16",
        "b",
        "a-student another configuration: hidden 8 → 16, dropout 0.5 → 0.2",
        "b-student another configuration: dropout 0.5 → 0.2",
    ]
    curves = [found["data-name"] for tag, found in page.elements if tag == "g" and "data-name" in found]
    assert "first: on the other half" in curves
    assert "second: on the other half" not in curves
    assert "second: the file" in curves
