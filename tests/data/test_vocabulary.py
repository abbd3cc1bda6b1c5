"""Names of classes, from the files that data sets come with."""

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
