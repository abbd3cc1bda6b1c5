"""The house as docs/architecture.md draws it: a room imports only rooms above it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "reeltag"
MODULES = sorted(SOURCE.rglob("*.py"))


def name_of(path):
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layers():
    """The table in docs/architecture.md: layer of each module, in order."""
    table = {}
    for line in (ROOT / "docs" / "architecture.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[0].isdigit():
            for file in cells[1].split():
                table[file.strip("`").removesuffix(".py").replace("/", ".")] = int(cells[0])
    return table


def imports(path):
    """Modules of reeltag that a file imports when it is imported."""
    found = set()
    tree = ast.parse(path.read_text())
    deferred = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.startswith("reeltag")
            and id(node) not in deferred
        ):
            base = node.module.removeprefix("reeltag").strip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".strip(".")
                found.add(inner if inner in {name_of(p) for p in MODULES} else base)
    return found - {""}  # the root gives __version__ alone


@pytest.mark.parametrize("path", [p for p in MODULES if name_of(p)], ids=name_of)
def test_a_room_imports_only_its_own_layer_and_those_above(path):
    table, name = layers(), name_of(path)
    if path.name == "__init__.py":
        assert not imports(path)
        return
    assert name in table, f"docs/architecture.md has no row for {name}"
    below = {other: table[other] for other in imports(path) if table.get(other, 0) > table[name]}
    assert not below


def test_every_row_of_the_table_is_a_file():
    assert set(layers()) <= {name_of(path) for path in MODULES}


@pytest.mark.parametrize("path", [*MODULES, *sorted((ROOT / "tests").glob("*.py"))], ids=lambda path: path.name)
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= 400
