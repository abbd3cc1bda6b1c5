"""CSV files of every make are read like Python's csv module reads them, or refused with file and line."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path

import pytest

from reeltag.core.errors import UsageError
from reeltag.core.tables import read_lines, read_table, require_columns

HEADER = ("id", "name", "notes")
ROWS = [("a", "Speech, loud", ""), ("b", 'a "quoted" one', "x;y"), ("c", "Café", "tab\there"), ("d", "", "|")]


def written(separator: str, end: str, quoting: int = csv.QUOTE_MINIMAL) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator, lineterminator=end, quoting=quoting)  # type: ignore[arg-type]
    writer.writerows([HEADER, *ROWS])
    return text.getvalue()


def rows_of(path: Path, content: bytes) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    path.write_bytes(content)
    table = read_table(path)
    return table.columns, [tuple(cells) for _, cells in table]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_what_csv_writes_is_read(tmp_path: Path, separator: str, end: str, encoding: str, quoting: int) -> None:
    content = written(separator, end, quoting).encode(encoding)
    assert rows_of(tmp_path / "t.csv", content) == (HEADER, ROWS)


def test_blank_lines_and_a_missing_last_line_break_are_passed_over(tmp_path: Path) -> None:
    assert rows_of(tmp_path / "t.csv", b"\n  \na,b\n\n1,2\n   \n3,4")[1] == [("1", "2"), ("3", "4")]


def test_spaces_around_cells_are_no_part_of_them(tmp_path: Path) -> None:
    assert rows_of(tmp_path / "t.csv", b'a , b\n 1, "x, y" \n') == (("a", "b"), [("1", "x, y")])


def test_a_commented_header_is_one_if_it_fits_the_rows(tmp_path: Path) -> None:
    audioset = b'# made in 2017\n# YTID, start_seconds, positive_labels\n--PJ, 30.000, "/m/09x0r,/t/dd00088"\n'
    columns, rows = rows_of(tmp_path / "t.csv", audioset)
    assert columns == ("YTID", "start_seconds", "positive_labels")
    assert rows == [("--PJ", "30.000", "/m/09x0r,/t/dd00088")]
    assert rows_of(tmp_path / "t.csv", b"# made by me\nid,labels\na,1\n") == (("id", "labels"), [("a", "1")])


def test_a_separator_in_a_quoted_column_name_is_no_separator(tmp_path: Path) -> None:
    assert rows_of(tmp_path / "t.csv", b'index,"name; other"\n1,2\n')[0] == ("index", "name; other")
    assert rows_of(tmp_path / "t.csv", b'"index, or number";name\n1;2\n')[0] == ("index, or number", "name")


def test_decomposed_names_are_composed(tmp_path: Path) -> None:
    assert rows_of(tmp_path / "t.csv", "id,name\n1,Cafe\u0301\n".encode())[1] == [("1", "Café")]


@pytest.mark.parametrize("cell", ["x" * 200_000, '"' + "x, " * 100_000 + 'x"'])
def test_a_long_cell_is_read_and_the_limit_of_the_csv_module_stays(tmp_path: Path, cell: str) -> None:
    before = csv.field_size_limit()
    assert rows_of(tmp_path / "t.csv", f"a,b\n1,{cell}\n".encode())[1] == [("1", cell.strip('"'))]
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"a,b\n1,2\n1\n", "line 3: has 1 cell, and the header 2 columns"),
        (b"a,b\n1,2\n1,2,3\n", "line 3: has 3 cells, and the header 2 columns"),
        (b"a;b\n1;2;3\n", "line 2: has 3 cells"),
        (b'a,b\n1,"x\n2,y\n3,"z"\n', "line 2: a quote is open"),
        (b'a,b\n1,"x\ny"\n', "line 2: a quote is open"),  # a line break in a cell
        (b'a,b\n1,"x"y\n', "line 2: is not CSV"),
        (b'"a,b\n1,2\n', "line 1: a quote is open"),
        (b"a,b\n1,\xe9\n", "line 2: is not UTF-8"),
        (b"a,b\n1,\0\n", "line 2: has a NUL character"),
        ("a,b\n1,2\n".encode("utf-16")[:-1], "is not UTF-16"),
        ("a,b\n1,2\n".encode("utf-16-le"), "line 1: has a NUL character"),
        (b",id,labels\n0,a,1\n", "line 1: column 1 of the header has no name"),
        (b"id,labels,labels\na,1,2\n", "line 1: two columns are called 'labels'"),
        (b"id,label;score\na,1;2\n", "line 1: the header may be separated by a comma or a semicolon"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, content: bytes, fault: str) -> None:
    with pytest.raises(UsageError) as caught:
        rows_of(tmp_path / "t.csv", content)
    assert fault in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "t.csv"))
    assert "\n" not in str(caught.value)


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reeltag.core.tables.MAX_LINE", 1000)
    with pytest.raises(UsageError, match="line 2: has more than 1,000 characters"):
        rows_of(tmp_path / "t.csv", b"a,b\n1," + b"x" * 2000)


def test_a_folder_and_a_missing_file_are_no_tables(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(UsageError, match="cannot be read"):
            read_table(path)


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("File,tags\na,1\n")
    table = read_table(tmp_path / "t.csv")
    assert require_columns(table, ["tags", "file"]) == [1, 0]
    with pytest.raises(UsageError, match=r"columns 'file' and 'labels', and has File, tags"):
        require_columns(table, ["file", "labels"])


def test_rows_are_read_as_they_are_needed(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"a,b\n1,2\n" + b"x" * 100_000 + b"\n\0")
    assert next(iter(read_table(tmp_path / "t.csv"))).cells == ["1", "2"]
    assert [line.number for line in read_lines(tmp_path / "t.csv", b"x\n\ny")] == [1, 2, 3]


def test_random_tables_are_read_as_the_csv_module_reads_them() -> None:
    rng, letters = random.Random(0), "ab ,;\t\"'|é\\#"
    for _ in range(200):
        separator, width = rng.choice(",;\t"), rng.randint(2, 4)
        cells = [["".join(rng.choices(letters, k=rng.randint(1, 6))).strip() for _ in range(width)] for _ in range(3)]
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=separator, quoting=csv.QUOTE_ALL).writerows(
            [[f"c{i}" for i in range(width)], *cells]
        )
        expected = [[each.strip() for each in row] for row in cells]
        assert [row.cells for row in read_table("t.csv", text.getvalue().encode())] == expected
