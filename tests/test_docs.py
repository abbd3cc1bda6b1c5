"""The pages: links lead somewhere, commands are commands, what is named is there; and the site builds and works."""

import ast
import asyncio
import importlib
import re
import shlex
import subprocess
import sys
from datetime import date
from functools import cache
from html.parser import HTMLParser
from itertools import takewhile
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import yaml
from cyclopts import CycloptsError, MissingArgumentError
from markdown_it import MarkdownIt

import chromium
from conftest import REPO
from reeltag.cli.main import app
from reeltag.core.version import __version__
from reeltag.data.schema import Feature, Schema
from reeltag.data.shards import read_examples

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "recipes/**/*.md")
    for path in REPO.glob(pattern)
    if "node_modules" not in path.parts  # installed by a reader of examples/anywhere
)
NAMES = [str(page.relative_to(REPO)) for page in PAGES]
SOURCES = sorted((REPO / "src").rglob("*.py"))
# Keys in an exported file's metadata look like modules of ours.
METADATA = {f"reeltag.{key}" for key in ("schema", "label_names", "members", "provenance", "thresholds", "calibration")}


@cache
def tokens(page: Path):
    """The page as markdown-it reads it, inline content beside the blocks."""
    return [
        token
        for block in MarkdownIt("commonmark").enable("table").parse(page.read_text())
        for token in [block, *(block.children or ())]
    ]


@cache
def anchors(page: Path) -> set[str]:
    """Anchors of the headings as GitHub makes them."""
    found: list[str] = []
    for opening, inline in zip(tokens(page), tokens(page)[1:], strict=False):
        if opening.type == "heading_open":
            text = "".join(child.content for child in inline.children)
            slug = re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")
            repeats = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in found)
            found.append(f"{slug}-{repeats}" if repeats else slug)
    return set(found)


def targets(page: Path) -> list[str]:
    """Return the targets of a page's links and images."""
    found = [token.attrs.get("href") or token.attrs.get("src") for token in tokens(page)]
    return [unquote(str(target)) for target in found if target]


def broken(page: Path, target: str) -> bool:
    """Return True if a relative link or its anchor leads nowhere."""
    if re.match(r"[a-z]+:", target):
        return False
    name, _, anchor = target.partition("#")
    file = (page.parent / name).resolve() if name else page
    if not file.exists() or REPO not in file.parents:
        return True
    return bool(anchor) and anchor not in anchors(file)


@pytest.mark.parametrize("name", NAMES)
def test_relative_links_anchors_and_images_are_there(name):
    page = REPO / name
    assert [target for target in targets(page) if broken(page, target)] == []


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    page = REPO / "docs" / "faq.md"
    assert not broken(page, "recipes.md#data") and not broken(page, "#choosing")
    assert broken(page, "recipes.md#nothing") and broken(page, "nothing.md") and broken(page, "../../outside.md")


def commands(page: Path) -> tuple[list[str], list[str]]:
    """Return commands of reeltag on a page: lines of shell blocks, and spans of code."""
    blocks, spans = [], []
    for token in tokens(page):
        if token.type == "fence" and token.info.split(" ")[0] in ("sh", "console", ""):
            blocks += [line.removeprefix("$ ") for line in token.content.replace("\\\n", " ").splitlines()]
        elif token.type == "code_inline":
            spans.append(token.content.replace("\\|", "|"))
    bare = ([re.sub(r"^(\w+=\S* )+", "", line) for line in lines] for lines in (blocks, spans))
    first, second = ([line for line in lines if line.startswith("reeltag ")] for lines in bare)
    return first, second


def parse(command: str) -> None:
    """Hold it against the command line, up to a comment, a pipe or a redirection."""
    words = shlex.split(command, comments=True)[1:]
    words = list(takewhile(lambda word: word not in ("|", ">"), words))
    app.parse_args(words, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("name", NAMES)
def test_commands_on_the_pages_are_commands(name):
    blocks, spans = commands(REPO / name)
    wrong = []
    for command in [*blocks, *spans]:
        if re.match(r"reeltag COMMAND|.*(\w\|\w|\w,|…)", command) and command in spans:  # several commands in one
            continue
        try:
            parse(command)
        except MissingArgumentError as error:  # the middle of a sentence may leave arguments out
            wrong += [f"{command}: {error}"] if command in blocks else []
        except CycloptsError as error:
            wrong.append(f"{command}: {error}")
    assert wrong == []


@pytest.mark.parametrize("command", ["reeltag run a.toml --epochs 3", "reeltag trains a.toml", "reeltag predict"])
def test_a_command_that_is_none_is_found(command):
    with pytest.raises(CycloptsError):
        parse(command)


def defined(file: Path) -> set[str]:
    """Names at the top of a module, and those in its classes, dotted."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        names = [node.name] if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) else []
        if isinstance(node, ast.Assign | ast.AnnAssign):
            places = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [place.id for place in places if isinstance(place, ast.Name)]
        found |= set(names)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return found


def named_places(page: Path) -> list[str]:
    """Spans of code that name a file, or something in it."""
    spans = [token.content for token in tokens(page) if token.type == "code_inline"]
    return [span for span in spans if re.fullmatch(r"[\w/]+\.(py|npz)(::[\w.]+)?|tf_checkpoints", span)]


@pytest.mark.parametrize(("page", "least"), [("paper-to-code.md", 100), ("architecture.md", 50)])
def test_files_and_functions_are_where_the_page_says(page, least):
    places = named_places(REPO / "docs" / page)
    missing = []
    for place in places:
        name, _, inside = place.partition("::")
        folder = "tests/golden" if name.endswith(".npz") or "." not in name else "src/reeltag"
        folder = "tests" if Path(name).name.startswith("test_") or name.startswith("tests/") else folder
        file = REPO / folder / name.removeprefix("tests/")
        if not file.exists() or (inside and inside not in defined(file)):
            missing.append(place)
    assert missing == []
    assert len(places) >= least


def test_every_golden_file_has_a_place_in_the_paper():
    named = {place for place in named_places(REPO / "docs" / "paper-to-code.md") if "::" not in place}
    # By reeltag itself, for test_files_written_before.py, and by other libraries for the tests of their encoders.
    own = {"written_before", "torchvggish_log_mel.npz", "image_processors.npz", "whisper_log_mel.npz"}
    assert {path.name for path in (REPO / "tests" / "golden").iterdir()} - own <= named


def test_every_claim_of_the_paper_has_a_number_a_command_and_an_outcome():
    page = (REPO / "docs" / "paper-to-code.md").read_text()
    section = page.split("\n## Claims\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"(?m)^\| \d.*$", section)]
    counts = {"3.1": 8, "3.2": 9, "4.1": 15, "4.2": 27, "4.3": 3}  # sentences of each section
    assert [row[0] for row in rows] == [f"{s}.{n}" for s, count in counts.items() for n in range(1, count + 1)]
    letters = set(re.findall(r"(?m)^# ([A-Z]):", section))
    for number, sentence, command, ours, theirs, agreement in rows:
        assert all(len(quote.split()) <= 10 for quote in re.findall(r'"([^"]+)"', sentence)), number
        assert set(re.findall(r"\b[A-Z]\b", command.split("`")[0])) <= letters, number
        assert re.match(r"[A-Z]\b", command) or "`" in command, number
        assert ours and theirs and agreement, number
        assert agreement != "-" or "- not measured yet" in ours, number


def feature_rows() -> list[list[str]]:
    lines = (REPO / "docs" / "features.md").read_text().replace("\\|", "¦").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| \d", line)]
    assert all(len(row) == 4 for row in cells)
    return cells


def test_every_expected_feature_is_answered():
    rows = feature_rows()
    assert [int(number) for number, *_ in rows] == list(range(1, 62))
    assert {answer for _, _, answer, _ in rows} <= {"yes", "no"}
    for _, expected, answer, shown in rows:
        assert re.search(r"\]\(|`", shown) if answer == "yes" else len(shown) > 5, expected


def test_pages_that_code_and_recipes_name_are_there():
    places = [*SOURCES, *(REPO / "recipes").rglob("*.toml"), *(REPO / "tests").rglob("*.py"), REPO / "Makefile"]
    named = {name for place in places for name in re.findall(r"\bdocs/[\w/-]+\.(?:md|svg|png)\b", place.read_text())}
    assert len(named) > 5
    assert [name for name in named if not (REPO / name).exists()] == []


def modules_named(text: str) -> set[str]:
    return set(re.findall(r"`(reeltag(?:\.\w+)+)", text)) - METADATA


def resolves(name: str) -> bool:
    """Return True if a dotted name is a module or a name in one."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def test_what_pages_and_docstrings_name_of_the_package_is_there():
    named = set().union(*(modules_named(path.read_text()) for path in [*PAGES, *SOURCES]))
    assert len(named) > 5
    assert [name for name in sorted(named) if not resolves(name)] == []


def test_the_shard_that_the_questions_page_writes_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = [token.content for token in tokens(REPO / "docs" / "faq.md") if token.info == "python"]
    exec(code, {})
    schema = Schema(features=(Feature(name="rgb", width=512),), dtype="float32", classes=10)
    (video,) = read_examples([tmp_path / "train-0.tfrecord"], schema)
    assert (video.id, video.labels.tolist(), video.length) == ("my-first", [2, 7], 30)
    np.testing.assert_array_equal(video.frames()[0, :2], np.random.default_rng(0).normal(size=512)[:2].astype("f4"))


def test_changelog_and_citation_have_the_version_of_the_package():
    release = re.search(r"(?m)^## (\S+) \((\d{4}-\d\d-\d\d)\)$", (REPO / "CHANGELOG.md").read_text())
    citation = yaml.safe_load((REPO / "CITATION.cff").read_text())
    assert release is not None and release[1] == citation["version"] == __version__
    assert date.fromisoformat(release[2]) == citation["date-released"]


def workflows() -> list[Path]:
    return sorted((REPO / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", workflows(), ids=lambda path: path.name)
def test_workflows_pin_actions_by_commit_and_run_targets_that_exist(path):
    targets = set(re.findall(r"(?m)^([\w-]+):(?!=)", (REPO / "Makefile").read_text()))
    workflow = yaml.safe_load(path.read_text())
    assert set(workflow["permissions"].items()) <= {("contents", "read")}
    for name, job in workflow["jobs"].items():
        for step in job.get("steps", ()):
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"]), f"{name}: {step['uses']}"
            elif step["run"].startswith("make "):
                assert step["run"].split()[1] in targets, f"{name}: {step['run']}"


def test_the_lowest_versions_that_are_tested_are_those_that_the_package_requires():
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    lowest = dict(re.findall(r"(?m)^([\w-]+)==(\S+)$", (REPO / "constraints-lowest.txt").read_text()))
    required = [re.match(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", line) for line in project["dependencies"]]
    assert {found[1] for found in required if found} == set(lowest)
    for found in required:
        assert found is not None and lowest[found[1]].startswith(found[2]), f"{found[1]} {lowest[found[1]]}"


class Fetched(HTMLParser):
    """Addresses that a page loads by itself."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        loads = given.get("rel") in ("stylesheet", "icon", "preload", "shortcut icon")
        self.found += [given[key] for key in ("src", "href") if given.get(key) and (key == "src" or loads)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("sphinx", reason="sphinx needs Python 3.11")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-c", "docs", "-d", folder / "trees", "-W", "-q", ".", folder / "html"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25 and (site / "index.html").read_text().count("docs/index.html") == 2
    for page in pages:
        parser = Fetched()
        parser.feed(page.read_text())
        for address in parser.found:
            assert not re.match(r"\w+:|//", address), f"{page}: {address}"
            assert (page.parent / unquote(address.partition("?")[0])).exists(), f"{page}: {address}"
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//", styles)


@pytest.mark.slow
@chromium.needed
def test_the_site_works_from_a_file_without_a_network(site, tmp_path):
    async def look():
        async with chromium.page(tmp_path / "profile") as page:
            for scheme in ("light", "dark"):
                for name in ("index", "docs/concepts", "docs/recipes", "docs/features", "docs/reference/cli"):
                    await page.look(400, 800, scheme)
                    await page.open(f"file://{site}/{name}.html")
                    await page.until("document.readyState == 'complete' && document.querySelector('h1') != null")
                    assert await page.value("document.documentElement.scrollWidth <= 400"), name
            await page.open(f"file://{site}/search.html?q=budget_mb")
            await page.until("document.querySelectorAll('.search li a').length > 1")
        assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []
        assert page.complaints == []

    asyncio.run(look())
