"""Every bench runs, if only for a moment and without its peers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"
SMALL = {
    "coded": ["--small"],
    "families": [],
    "gpu": [],
    "import": ["--videos", "128"],
    "infer": ["--models", "lstm"],
    "loader": ["--batches", "1"],
    "metrics": ["--videos", "200"],
    "modes": ["--small"],
    "quantize": ["--millions", "1"],
    "reader": ["--videos", "20"],
    "serve": ["--models", "audioset", "--requests", "32", "--malformed", "50"],
    "start": [],
    "train": ["--models", "lstm"],
    "videos": ["--minutes", "0.05", "--clips", "none"],
}


def test_all_benches_are_here() -> None:
    scripts = {path.stem for path in BENCH.glob("*.py") if not path.stem.startswith("peer_")}
    parts = {"measure", "models", "random_videos"}
    assert scripts == {*SMALL, *parts, "rate", "threads"}  # these take their time, whatever one asks of them


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_bench_ends_with_a_line_of_json(name: str, tmp_path: Path) -> None:
    command = [sys.executable, BENCH / f"{name}.py", "--rounds", "1", "--json", "--peers", tmp_path / "none"]
    done = subprocess.run([*command, *SMALL[name]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["bench"] == name
