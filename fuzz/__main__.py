"""Runs a target under atheris: `python -m fuzz TARGET [CORPUS] [libFuzzer's options]`; `make fuzz` runs all.

The corpus begins with the target's own seeds. What fails is kept beside it, as libFuzzer does: `crash-…`, `timeout-…`,
`oom-…`; give such a file instead of the corpus to see it fail again.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import atheris

name, *arguments = sys.argv[1:]
with atheris.instrument_imports(include=["reeltag"]):
    target = importlib.import_module(f"fuzz.{name}")
for corpus in map(Path, arguments[:1]):
    if corpus.is_dir():
        for number, seed in enumerate(target.seeds()):
            (corpus / f"seed-{number}").write_bytes(seed)
atheris.Setup([sys.argv[0], *arguments], target.one_input)
atheris.Fuzz()
