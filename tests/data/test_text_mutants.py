"""Damaged text files are refused with one line that names the file, or read without the loss of a row or a label."""

from __future__ import annotations

import csv
import json
import random
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from reeltag.core.errors import UsageError
from reeltag.data.external_predictions import read_predictions
from reeltag.data.label_table import read_labels
from reeltag.data.shards import id_hash
from reeltag.data.vocabulary import read_vocabulary

SEEDS = {
    "labels.csv": 'id,labels\nv0,sea|sky\nv1,"sun, red"\nv2,\nv3,sea|sun|fog\n"v,4",Café\nv5,"a ""b"""\n',
    "rows.csv": "file;label\r\nv0;sea\r\nv0;sky\r\nv1;sun\r\nv2;fog\r\nv3;sea\r\n",
    "names.csv": 'index,mid,display_name\n0,/m/0,Sea\n2,/m/2,"Sky, blue"\n1,/m/1,\n3,/m/3,Café\n',
    "teacher.csv": "VideoId,LabelConfidencePairs\nv0,3 0.99 7 1e-05\nv1,\nv2,0 1\nv3,9 0.5 1 0.25\n",
    "labels.jsonl": "".join(json.dumps({"id": f"v{n}", "labels": [f"c{n % 3}", "sea"]}) + "\n" for n in range(6)),
}
NOISE = [*(bytes([byte]) for byte in b'",;|\t\n\r\0#{}[]:0 1-e.\\'), b'""', b"\xff", b"\xef\xbb\xbf", b"\n\n"]


def mutants(name: str, count: int) -> list[bytes]:
    """Return a file with a few bytes changed, inserted, removed, repeated or cut off, in many ways."""
    rng, found = random.Random(name), []
    for _ in range(count):
        content = bytearray(SEEDS[name].encode())
        for _ in range(rng.choice([1, 1, 2])):
            start = rng.randrange(len(content) + 1)
            end = min(len(content), start + rng.choice([1, 1, 2, 9]))
            piece = [rng.choice(NOISE), b"", bytes(content[start:end]) * 2, bytes([rng.randrange(256)])]
            content[start : rng.choice([start, end])] = rng.choice(piece)
        found.append(bytes(content if rng.random() < 0.9 else content[: rng.randrange(len(content) + 1)]))
    return found


def lines_of(path: Path) -> list[str]:
    """Return the lines that have content."""
    content = path.read_bytes()
    text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    return [line for line in re.split("\r\n|\r|\n", unicodedata.normalize("NFC", text)) if line.strip(" ")]


def rows_of(path: Path, width: int) -> list[list[str]]:
    """Return the cells of the rows as the csv module splits them."""
    lines = lines_of(path)
    rows = lines[next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines)) :]
    rows = lines if lines[0].startswith("#") and len(rows) == len(lines) - 1 else rows
    separator = max(",;\t", key=rows[0].count)
    reader = csv.reader(rows, delimiter=separator, skipinitialspace=True)
    header, *cells = ([cell.strip() for cell in row] for row in reader)
    assert len(header) == width
    assert all(len(row) == width for row in cells)
    return cells


def check_labels(path: Path) -> None:
    found = read_labels(path)
    given: dict[str, str] = {}
    if path.suffix == ".csv":
        for name, cell in rows_of(path, 2):
            given[name] = f"{given[name]}|{cell}" if name in given else cell
    else:
        for row in map(json.loads, lines_of(path)):
            (name,) = (value for key, value in row.items() if key.casefold() == "id")
            (labels,) = (value for key, value in row.items() if key.casefold() in ("labels", "label"))
            given[name.strip()] = "|".join([labels] if isinstance(labels, str) else labels)
    assert {*found.labels} == {*given}
    for name, numbers in found.labels.items():
        rest = given[name]
        labels = [found.names[each] if found.names else str(each) for each in numbers]
        for label in sorted(labels, key=len, reverse=True):
            assert label in rest
            rest = rest.replace(label, "")
        assert not rest.strip(" |;,[]\"'"), "a label is lost"


def check_names(path: Path) -> None:
    found = read_vocabulary(path)
    rows = rows_of(path, 3)
    assert len({row[0] for row in rows}) == len(rows)
    for number, mid, name in rows:
        assert found.names[int(number)] == name or (not name and found.names[int(number)] in (mid, number))


def check_predictions(path: Path) -> None:
    found = read_predictions(path, 10)
    rows = rows_of(path, 2)
    assert len(found.ids) == len(rows)
    dense = found.rows(np.array([id_hash(name) for name, _ in rows], np.uint64))
    for probabilities, (_, pairs) in zip(dense, rows, strict=True):
        values = list(map(float, pairs.split()))
        expected = dict(zip(map(int, values[::2]), map(np.float32, values[1::2]), strict=True))
        assert {c: p for c, p in enumerate(probabilities) if p} == {c: p for c, p in expected.items() if p}


CHECKS: dict[str, Callable[[Path], None]] = {
    "labels.csv": check_labels,
    "rows.csv": check_labels,
    "names.csv": check_names,
    "teacher.csv": check_predictions,
    "labels.jsonl": check_labels,
}


def outcomes(tmp_path: Path, name: str, count: int) -> tuple[int, int]:
    path, read, refused = tmp_path / name, 0, 0
    for content in [SEEDS[name].encode(), *mutants(name, count)]:
        path.write_bytes(content)
        try:
            CHECKS[name](path)
            read += 1
        except UsageError as error:
            assert str(error).startswith(str(path)), content
            assert "\n" not in str(error), content
            refused += 1
        except Exception as error:
            raise AssertionError(content) from error
    return read, refused


@pytest.mark.parametrize("name", SEEDS)
def test_some_mutants(tmp_path: Path, name: str) -> None:
    read, refused = outcomes(tmp_path, name, 40)
    assert min(read, refused) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEDS)
def test_five_hundred_mutants(tmp_path: Path, name: str) -> None:
    read, refused = outcomes(tmp_path, name, 500)
    assert min(read, refused) >= 50
