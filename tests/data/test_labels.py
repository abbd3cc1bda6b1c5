"""Labels in every form that people write are read as what they mean, and refused where they may mean two things."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import data_file
from reeltag.core.errors import UsageError
from reeltag.data.label_table import LabelTable, gather, read_labels
from reeltag.data.labels import RawLabels, find_form
from reeltag.data.ratings import from_lists
from reeltag.data.schema import Feature, Schema
from reeltag.data.vocabulary import Vocabulary, named, read_vocabulary

PRESENT = {"a": (0, 2), "b": (1,), "c": (0, 1)}
NAMES = ("Car", "Male speech, man speaking", "Café")
IDS = ("/m/0k4j", "/m/05zppz", "/t/dd00088")
KNOWN = Vocabulary(NAMES, IDS)


def table(tmp_path: Path, text: str, **told: Any) -> LabelTable:
    path = tmp_path / "labels"
    path.write_text(text, encoding="utf-8")
    return read_labels(path, **told)


def rows(cells: dict[str, object], header: str = "id,labels") -> str:
    return "\n".join([header, *(f"{name},{cell}" for name, cell in cells.items())]) + "\n"


def n_hot(form: str) -> dict[str, str]:
    return {name: form.join(str(int(number in each)) for number in range(3)) for name, each in PRESENT.items()}


def joined(values: tuple[object, ...], separator: str) -> dict[str, str]:
    return {name: f'"{separator.join(str(values[each]) for each in present)}"' for name, present in PRESENT.items()}


NUMBERS, SHORT = (0, 1, 2), ("sea", "sky", "sun")
OF_NAMES = {"vocabulary": KNOWN}
FORMS = {
    **{f"numbers by {each!r}": (rows(joined(NUMBERS, each)), {}) for each in (" ", ",", ";", "|", ", ")},
    **{f"names by {each!r}": (rows(joined(SHORT, each)), {}) for each in ("|", ";", " | ")},
    **{f"known names by {each!r}": (rows(joined(NAMES, each)), OF_NAMES) for each in ("|", ";")},
    **{f"short names by {each!r}": (rows(joined(SHORT, each)), {"vocabulary": named(SHORT)}) for each in (",", " ")},
    **{f"ids by {each!r}": (rows(joined(IDS, each)), OF_NAMES) for each in (",", " ", "|")},
    "numbers as NumPy writes them": (rows(joined(("0.0", "1.0", "2.0"), " ")), {}),
    "JSON lists": (rows({name: f'"{json.dumps(each)}"' for name, each in PRESENT.items()}), {}),
    "lists of pandas": ('id;labels\na;"[\'sea\', \'sun\']"\nb;"[\'sky\']"\nc;"[\'sea\', \'sky\']"\n', {}),
    "a row a label": (rows({}, "video_id,label") + "a,2\nb,1\na,0\nc,1\nc,0\n", {}),
    "a row a name": (rows({}, "file,tag") + "a.mp4,sea\nb.mp4,sky\na.mp4,sun\nc.mp4,sea\nc.mp4,sky\n", {}),
    "two columns": ("id,label_1,label_2\na,2,0\nb,1,\nc,0,1\n", {}),
    "label and label2": ("id,label,label2\na,2,0\nb,1,\nc,0,1\n", {}),
    "a column a class": (rows(n_hot(","), "id,sea,sky,sun"), {}),
    "columns of truth values": ("id,x,y,z\na,True,False,True\nb,False,True,False\nc,True,True,False\n", {}),
    "columns of floats": ("id\tx\ty\tz\na\t1.0\t0.0\t1.0\nb\t0.0\t1.0\t0.0\nc\t1.0\t1.0\t0.0\n", {}),
    "columns with a split": (rows({k: f"train,{v}" for k, v in n_hot(",").items()}, "id,split,x,y,z"), {}),
    "columns in another order": ("id,sun,sky,sea\na,1,0,1\nb,0,1,0\nc,0,1,1\n", {"vocabulary": named(SHORT)}),
    "numbered columns": ("id,2,1,0\na,1,0,1\nb,0,1,0\nc,0,1,1\n", {}),
    "columns of known ids": (rows(n_hot(","), f"id,{','.join(IDS)}"), OF_NAMES),
    "numbered columns, told": (rows(n_hot(","), "id,class_0,class_1,class_2"), {"encoding": "n-hot"}),
    "N-hot cells, told": (rows(n_hot(" ")), {"encoding": "n-hot"}),
    "N-hot lists, told": (rows({k: f'"[{v}]"' for k, v in n_hot(",").items()}), {"encoding": "n-hot"}),
    "JSON Lines": ("".join(json.dumps({"id": k, "labels": list(v)}) + "\n" for k, v in PRESENT.items()), {}),
    "JSON Lines of names": (
        "".join(json.dumps({"labels": [SHORT[i] for i in v], "id": k}) + "\n\n" for k, v in PRESENT.items()),
        {},
    ),
    "JSON Lines, a label a line": (
        "".join(json.dumps({"id": k, "label": SHORT[i]}) + "\n" for k, v in PRESENT.items() for i in v),
        {},
    ),
    "JSON Lines of truth values": (
        "".join(json.dumps({"id": k, "labels": [i in v for i in range(3)]}) + "\n" for k, v in PRESENT.items()),
        {},
    ),
    "JSON by id": (json.dumps(PRESENT, indent=1), {}),
    "a JSON list": (json.dumps([{"file": k, "tags": "|".join(SHORT[i] for i in v)} for k, v in PRESENT.items()]), {}),
    "AudioSet's segment lists": (
        "# made in 2017\n# num_ytids=3\n# YTID, start_seconds, end_seconds, positive_labels\n"
        + "".join(f'{k}, 0.000, 9.000, "{",".join(IDS[i] for i in v)}"\n' for k, v in PRESENT.items()),
        OF_NAMES,
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_found(tmp_path: Path, form: str) -> None:
    text, told = FORMS[form]
    found = table(tmp_path, text, **told)
    assert {name: tuple(found.of(name).tolist()) for name in PRESENT} == PRESENT  # type: ignore[union-attr]
    assert found.classes == 3
    assert found.of("d") is None


@pytest.mark.parametrize("kind", ["lists", "names", "N-hot columns", "a row a label"])
def test_parquet_is_read(tmp_path: Path, kind: str) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    columns: dict[str, Any] = {
        "lists": {"id": [*PRESENT], "labels": [list(each) for each in PRESENT.values()]},
        "names": {"id": [*PRESENT], "labels": [[SHORT[i] for i in each] for each in PRESENT.values()]},
        "N-hot columns": {"id": [*PRESENT]} | {SHORT[i]: [i in each for each in PRESENT.values()] for i in range(3)},
        "a row a label": {"id": [*"abcac"], "label": pa.array([0, 1, 0, 2, 1], pa.int32())},
    }[kind]  # fmt: skip
    columns["rgb"] = pa.array([[[0.0, 1.0]]] * len(columns["id"]))  # features, which are not read
    pq.write_table(pa.table(columns), tmp_path / "labels.parquet")
    found = read_labels(tmp_path / "labels.parquet")
    assert {name: tuple(found.of(name).tolist()) for name in PRESENT} == PRESENT  # type: ignore[union-attr]


def test_parquet_that_cannot_be_read_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "labels.parquet"
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UsageError, match=r"labels.parquet: is not a Parquet file that can be read"):
        read_labels(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install .*\[import\]"):
        read_labels(path)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (rows(n_hot(" ")), "labels, line 2: 'a': every video has 3 labels, all of them 0 or 1"),
        (rows({"a": '"[1.0, 0.0]"', "b": "", "c": "0 1"}), "every video has 2 labels, all of them 0 or 1"),
        ('{"id": "a", "labels": [1, 0]}\n{"id": "b", "labels": [0, 0]}\n', "every video has 2 labels"),
        (rows(n_hot(","), "id,class_0,class_1,class_2"), "every video has 3 labels, all of them 0 or 1"),
        ("id,Game\na,1\nb,0\n", "which may be N-hot or the classes 0 and 1; set label_encoding"),
        ("id,sea,category\na,1,0\nb,0,1\n", "which may be N-hot or the classes 0 and 1; set label_encoding"),
        ("id;label\na;3,0\nb;0,0\nc;\n", "every video has labels such as '3,0', which may be one class or two"),
        ("id,label\na,true\nb,false\n", "every video has one label, such as 'true'"),
        (rows({"a": '"sea, sky"'}), "line 2: 'a': 'sea, sky' may be one name or several"),
        (rows({"a": "sea|sky", "b": "sea;sun"}), "has | and ; in them"),
        (rows({"a": "sea", "b": "7"}), "line 3: 'b': '7' is a number among names"),
        ("id,label,confidence\na,3,0\n", "the column 'confidence' rates labels"),
    ],
)
def test_what_may_mean_two_things_is_refused(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(UsageError, match=re.escape(fault)):
        table(tmp_path, text)


@pytest.mark.parametrize("encoding", ["index", "n-hot", "name"])
def test_lists_of_zeros_and_ones_mean_what_is_told(tmp_path: Path, encoding: Any) -> None:
    found = table(tmp_path, "id,labels\na,1 0\nb,0 0\n", encoding=encoding)
    expected = {"index": {"a": (0, 1), "b": (0,)}, "n-hot": {"a": (0,), "b": ()}, "name": {"a": (0, 1), "b": (0,)}}
    assert found.labels == expected[encoding]
    assert found.names == (("0", "1") if encoding == "name" else None)


@pytest.mark.parametrize(
    ("text", "told", "fault"),
    [
        ("a,1\nb,2\n", {}, "no column of ids among a, 1; call it video_id"),
        ("id\na\n", {}, "no column is called labels"),
        (
            "id,sea,length\na,1,9.5\n",
            {},
            "line 2: no column is called labels among id, sea, length, and 'length' holds '9.5'",
        ),
        ("id,sea,sky\na,1,0\nb,1,\n", {}, "line 3: no column is called labels among id, sea, sky, and 'sky' holds ''"),
        ("id,labels\n", {}, "has no rows"),
        ("id,labels\na,\n", {}, "gives no video a label"),
        ("id,labels\n,3\n", {}, "line 2: the id is ''"),
        ("id,labels\na,1|2\na,3\n", {}, "line 3: 'a' has a row already"),
        ("id,labels\na,3\na,1|2\n", {}, "line 3: 'a' has a row already"),
        ("id,x,y\na,0,1\na,1,0\n", {}, "line 3: 'a' has a row already"),
        ("id,labels\na,1.5\n", {}, "line 2: 'a': '1.5' is not the number of a class"),
        ("id,labels\na,-1\n", {}, "'-1' is not the number of a class"),
        ("id,labels\na,007\n", {}, "'007' is not the number of a class"),
        ("id,labels\na,1000000\n", {}, "'1000000' is not the number of a class, 0 to 999,999"),
        ("id,labels\na,41\n", {"classes": 40}, "label 41 is outside the 40 classes"),
        ("id,labels\na,Kar\n", OF_NAMES, "line 2: 'a': there is no class 'Kar'; did you mean 'Car'?"),
        ("id,labels\na,Cafe|Boat\n", OF_NAMES, "there is no class 'Cafe'; did you mean 'Café'?"),
        ("id,labels\na,nan\nb,sea\n", {}, "line 2: 'a': a label is 'nan'"),
        ('id,labels\na,"[1, null]"\n', {}, "line 2: 'a': a label is None"),
        ('id,labels\na,"[1 2]"\n', {}, "'[1 2]' is not a list"),
        ('id,labels\na,"[[1], [2]]"\n', {}, "[1] is not a label"),
        ('{"id": "a", "labels": {"x": 1}}\n', {}, "a table is not a label"),
        ("id,labels\na,1 0 2\n", {"encoding": "n-hot"}, "'2' among N-hot labels"),
        ("id,labels\na,1 0\nb,1 0 1\n", {"encoding": "n-hot"}, "line 2: 'a': has 2 N-hot labels for 3 classes"),
        ("id,labels\na,1 0\n", {"encoding": "n-hot", "classes": 4}, "has 2 N-hot labels for 4 classes"),
        ("id,labels\na,sea\n", {"classes": 4}, "names 1 classes, not 4"),
        ('{"id": "a", "labels": [1]}\n{"id": "b", "labels"\n', {}, "line 2: is not JSON"),
        ('{"id": "a", "labels": [1]}\n[1]\n', {}, "line 2: is [1]; give an object"),
        ('{"id": "a", "labels": [1], "labels": [2]}\n', {}, "line 1: the key 'labels' occurs twice"),
        ('{"a": [1], "a": [2]}', {}, "the key 'a' occurs twice"),
        ('{"id": null, "labels": [1]}\n', {}, "line 1: the id is None"),
        ('{"id": "a", "labels": [1]}\n{"id": "b", "lables": [1]}\n', {}, "line 2: has no 'labels'"),
        ('{"id": "a", "labels": [NaN]}\n', {}, "a label is nan"),
        ("id,start,end,label,rating\na,0,x,3,1\n", {}, "line 2: 'a': end is 'x'; give a whole number"),
        ("id,start,end,label,rating\na,0,5,3|4,1\n", {}, "a rating is of one label"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, told: Any, fault: str) -> None:
    with pytest.raises(UsageError) as caught:
        table(tmp_path, text, **told)
    assert fault in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "labels"))
    assert "\n" not in str(caught.value)


def test_a_name_that_is_another_classes_number_is_refused(tmp_path: Path) -> None:
    years = named(["2", "1", "0"])
    with pytest.raises(UsageError, match="is the number of one class and the name of another"):
        table(tmp_path, "id,labels\na,2\n", vocabulary=years)
    assert table(tmp_path, "id,labels\na,2\n", vocabulary=years, encoding="name").labels == {"a": (0,)}
    assert table(tmp_path, "id,labels\na,2\n", vocabulary=years, encoding="index").labels == {"a": (2,)}


def test_a_text_that_is_one_name_and_several_is_refused(tmp_path: Path) -> None:
    known = named(["sea", "people", "sea, people"])
    with pytest.raises(UsageError, match="'sea, people' may be one class or several"):
        table(tmp_path, 'id,labels\na,"sea, people"\n', vocabulary=known)


def test_a_space_is_part_of_a_name_also_where_its_words_are_names(tmp_path: Path) -> None:
    found = table(tmp_path, "id,labels\na,sea people\nb,sea\nc,people\n")
    assert found.names == ("people", "sea", "sea people")
    assert found.labels == {"a": (2,), "b": (1,), "c": (0,)}


def test_ids_are_compared_in_one_unicode_form_and_without_the_ending_of_a_file(tmp_path: Path) -> None:
    found = table(tmp_path, "file,labels\nCafe\u0301.mp4,1\nb.npy,2\nc.wav,3\nc.mp4,4\n3.5,6\n")
    assert found.of("Café") == found.of("Café.mp4") == [1]
    assert found.of("b") == found.of("b.npy") == [2]
    assert found.of("c") is None  # either of two
    assert found.of("3") is None  # .5 is no ending of a file


def test_what_is_merged_or_not_read_is_counted(tmp_path: Path) -> None:
    found = table(tmp_path, "id,labels,url,length\na,1 1 4,u,3\nb,,u,4\n")
    assert found.labels == {"a": (1, 4), "b": ()}
    assert found.remarks == (
        "2 columns not read: url, length",
        "1 label given twice, merged",
        "1 video without labels",
        "3 of 5 classes without a video",
    )


def test_ratings_of_segments_are_those_of_records(tmp_path: Path) -> None:
    text = "id,start,end,label,rating\na,5,10,Car,1\na,0,5,Café,0\na,5,10,Café,1\nb,0,5,Car,0\n"
    found = table(tmp_path, text, vocabulary=KNOWN)
    assert found.labels == {"a": (0, 2), "b": ()}
    schema = Schema(features=(Feature(name="rgb", width=4),), classes=3, segments=5)
    rated = from_lists(found.ratings["a"], 20, schema)
    assert rated is not None
    assert (rated.starts.tolist(), rated.classes.tolist(), rated.positive.tolist()) == ([0, 5, 5], [2, 0, 2], [0, 1, 1])


def test_audiosets_own_labels_fit_its_vocabulary(tmp_path: Path) -> None:
    known = read_vocabulary(data_file("audioset/class_labels_indices.csv"), 527)
    text = "# YTID, start_seconds, end_seconds, positive_labels\n" + "".join(
        f'v{number}, 30.000, 40.000, "{known.ids[number]},{known.ids[0]}"\n' for number in range(1, 527)
    )
    found = table(tmp_path, text, vocabulary=known)
    assert found.labels == {f"v{number}": (0, number) for number in range(1, 527)}
    by_name = json.dumps({f"v{number}": [known.names[number], known.names[0]] for number in range(1, 527)})
    assert table(tmp_path, by_name, vocabulary=known).labels == found.labels


ARRAYS: dict[str, Any] = {
    "class numbers": [np.array([0, 2]), np.array([1], np.uint8), np.array([1, 0], np.float32)],
    "truth values": [np.array([1, 0, 1], bool), np.array([0, 1, 0], bool), np.array([1, 1, 0], bool)],
    "texts": ["0 2", "1", "0 1"],
    "bytes": [[b"sea", b"sun"], [b"sky"], [b"sea", b"sky"]],
    "arrays of names": [np.array(["sea", "sun"]), np.array(["sky"]), np.array(["sky", "sea"], object)],
    "single values": [[0, 2], np.int64(1), [0, 1]],
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_labels_beside_features_are_read_as_those_of_files(kind: str) -> None:
    found = [RawLabels(f"films.h5: {name}", name, raw) for name, raw in zip(PRESENT, ARRAYS[kind], strict=True)]
    assert gather(found, find_form(found)).labels == PRESENT


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.uint8])
def test_arrays_of_zeros_and_ones_are_refused_until_told(dtype: Any) -> None:
    found = [RawLabels(f"films.h5: {k}", k, np.array([i in v for i in range(3)], dtype)) for k, v in PRESENT.items()]
    with pytest.raises(UsageError, match=r"^films\.h5: a: 'a': every video has 3 labels, all of them 0 or 1"):
        find_form(found)
    assert gather(found, find_form(found, encoding="n-hot")).labels == PRESENT


def test_every_form_on_the_page_is_found(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "labels.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:text|json)\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= 9
    for block in blocks:
        found = table(tmp_path, block, vocabulary=KNOWN if "/m/" in block else None)
        assert {name: tuple(found.of(name).tolist()) for name in PRESENT} == PRESENT, block  # type: ignore[union-attr]
