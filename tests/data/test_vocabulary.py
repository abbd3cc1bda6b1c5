"""Names of classes, from the files that data sets come with."""

import csv
import re
from pathlib import Path

import pytest

from conftest import data_file
from reeltag.core.errors import UsageError
from reeltag.data.vocabulary import read_vocabulary


def label_file(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "labels.csv"
    path.write_text(text, encoding=encoding)
    return path


@pytest.mark.parametrize(
    "text",
    [
        'index,mid,display_name\n0,/m/09x0r,"Speech, loud"\n1,/m/05zppz,Café\n',
        'Index,TrainVideoCount,KnowledgeGraphId,Name,WikiUrl\n0,9,/m/1,"Speech, loud",u\n1,8,/m/2,Café,u\n',
        'name,index\nCafé,1\n"Speech, loud",0\n',
    ],
)
def test_label_names_come_by_index_from_either_data_sets_header(tmp_path: Path, text: str) -> None:
    assert read_vocabulary(label_file(tmp_path, text), 2).names == ("Speech, loud", "Café")


@pytest.mark.parametrize(
    ("name", "classes", "index", "expected"),
    [
        ("audioset/class_labels_indices.csv", 527, 4, "Conversation"),
        ("yt8m_video/vocabulary.csv", 3862, 1, "Video game"),
    ],
)
def test_real_label_files_are_read(name: str, classes: int, index: int, expected: str) -> None:
    names = read_vocabulary(data_file(name), classes).names
    assert len(names) == classes
    assert names[index] == expected


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "needs a header"),
        ("index,name\n", "needs a header"),
        ("number,name\n0,A\n1,B\n", "needs a header"),
        ("index,other\n0,A\n1,B\n", "needs a header"),
        ("index,name\n0,A\n2,B\n", "line 3: numbers a class 2, but there are only 2"),
        ("index,name\n0,A\n1,B\n1,C\n", "line 4: numbers a second class 1, after line 3"),
        ("index,name\n0,A\n1\n", "labels.csv"),
    ],
)
def test_a_label_file_that_does_not_name_each_class_once_is_refused(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        read_vocabulary(label_file(tmp_path, text), 2)


def test_a_label_file_in_another_encoding_is_a_usage_error(tmp_path: Path) -> None:
    path = label_file(tmp_path, "index,name\n0,A\n1,Café\n", encoding="latin-1")
    with pytest.raises(UsageError, match=r"labels\.csv"):
        read_vocabulary(path, 2)


def test_a_label_file_saved_by_a_spreadsheet_is_read(tmp_path: Path) -> None:
    # Spreadsheets put a byte order mark before the header.
    path = label_file(tmp_path, "index,name\n0,A\n1,B\n", encoding="utf-8-sig")
    assert read_vocabulary(path, 2).names == ("A", "B")


def test_a_missing_label_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file of label names"):
        read_vocabulary(tmp_path / "labels.csv", 2)


YT8M = "Index,TrainVideoCount,KnowledgeGraphId,Name,WikiUrl,Vertical1,Vertical2,Vertical3,WikiDescription\n"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (YT8M + '2,9,/m/02,,u,,,,\n0,9,/m/00,Game,u,,,,"a, b"\n1,9,/m/01, Nova,u,,,,\n', ("Game", "Nova", "/m/02")),
        ("label_id,label_name\n1,B\n0,A\n2,\n", ("A", "B", "2")),  # Kaggle, 2017
        ("index,mid,display_name\n0,/m/0,A\n2,/m/2,C\n", ("A", "1", "C")),  # 2019 has only some classes
        ("Index,KnowledgeGraphId\n0,/m/0\n1,/m/1\n", ("/m/0", "/m/1")),
        ('Game\n"Male speech, man speaking"\nCar\n\n', ("Game", "Male speech, man speaking", "Car")),
        ("\ufeffname\nGame\nCar\n", ("Game", "Car")),
        ("INDEX;DISPLAY_NAME\r\n0;A, B\r\n1;Cafe\u0301\r\n", ("A, B", "Café")),
    ],
)
def test_official_vocabularies_and_lists_are_read_as_they_come(
    tmp_path: Path, text: str, names: tuple[str, ...]
) -> None:
    assert read_vocabulary(label_file(tmp_path, text)).names == names


def test_classes_without_a_name_are_counted(tmp_path: Path) -> None:
    path = label_file(tmp_path, "Index,KnowledgeGraphId,Name\n0,/m/0,A\n1,/m/1,\n3,/m/3,\n")
    found = read_vocabulary(path, 6)
    assert found.names == ("A", "/m/1", "2", "/m/3", "4", "5")
    assert found.remarks == (
        "2 of 6 classes have no name and are called by their id",
        "3 of 6 classes have no name and are called by their number",
    )
    assert not read_vocabulary(label_file(tmp_path, "index,name\n0,A\n"), 1).remarks


def test_the_real_vocabulary_leaves_no_class_without_a_name() -> None:
    found = read_vocabulary(data_file("yt8m_video/vocabulary.csv"), 3862)
    assert all(found.names)
    with data_file("yt8m_video/vocabulary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(row["Name"] == "" for row in rows) == 56
    for row in rows:
        assert found.names[int(row["Index"])] == (row["Name"].strip() or row["KnowledgeGraphId"])
        assert found.number(row["KnowledgeGraphId"]) == int(row["Index"])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("index,name\n0,A\n-1,B\n", "line 3: '-1' is not the number of a class"),
        ("index,name\n0,A\n1.5,B\n", "line 3: '1.5' is not the number of a class"),
        ("index,name\n00,A\n", "line 2: '00' is not the number of a class"),
        ("index,name\n0,A\n99999999,B\n", "line 3: '99999999' is not the number of a class"),
        ("mid,display_name\n/m/0,A\n", "needs a header"),
        ("Index\n0\n1\n", "needs a header"),
        ("A\n\nB\n", "line 2: is empty; a list has the name of a class in each line"),
        ("A\nSpeech, loud\n", "line 2: has 2 cells in a list of one name a line"),
        ('index,name\n0,"A\n1,B\n', "line 2: a quote is open"),
    ],
)
def test_what_names_no_classes_is_refused_with_its_line(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(UsageError, match=re.escape(fault)):
        read_vocabulary(label_file(tmp_path, text))


def test_a_name_is_found_in_one_unicode_form_and_an_unknown_one_gets_the_nearest(tmp_path: Path) -> None:
    found = read_vocabulary(label_file(tmp_path, "index,mid,name\n0,/m/0,Café\n1,/m/1,Car\n2,/m/2,Car\n"))
    assert found.number("Cafe\u0301") == found.number("/m/0") == 0
    with pytest.raises(UsageError, match="there is no class 'Caf'; did you mean 'Café'"):
        found.number("Caf")
    with pytest.raises(UsageError, match="the classes 1 and 2 are all called 'Car'; give class numbers or ids"):
        found.number("Car")
