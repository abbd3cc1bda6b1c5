#!/usr/bin/env bash
# webdataset 1.0.2, numpy 2.4.6, Python 3.11 (tarfile)
#
# Behaviour: of a .tar.gz with one bit flipped (a bad disk, a bad transfer) gzip refuses every copy, by the checksum at
# its end. webdataset gives changed features, or fewer videos, without a word for nearly all of them: floats hardly
# compress, and a flipped bit within them leaves a valid stream. It reads through tarfile's stream mode, whose gzip
# compares no checksum. tarfile.open(path), which goes through the gzip module, does not tell either: the archive ends
# before the file does, so the end of the gzip, where its checksum is compared, is never read.
#
# Guess before running: gzip has a checksum, so a damaged shard is an error from webdataset; when it was not, that
# tarfile.open(path) would tell, since it uses the gzip module.
#
# Output seen (150 copies with one bit flipped each):
#                             error   changed features       fewer videos               same
#   gzip                        150                  0                  0                  0
#   tarfile.open                  3                128                 19                  0
#   webdataset                    3                128                 19                  0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet webdataset==1.0.2 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import gzip
import io
import random
import sys
import tarfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import webdataset


def read():
    """Return the features by video of copy.tar.gz, read by webdataset."""
    samples = webdataset.WebDataset("copy.tar.gz", shardshuffle=False).decode()
    return {sample["__key__"]: sample["rgb.npy"] for sample in samples}


def outcome(reader):
    """Return what a reader makes of copy.tar.gz: an error, or how its videos differ from the written ones."""
    try:
        videos = reader()
    except (OSError, EOFError, ValueError, KeyError, zlib.error, tarfile.TarError):
        return "error"
    if len(videos) < len(written):
        return "fewer videos"
    same = all(np.array_equal(videos.get(name), x, equal_nan=True) for name, x in written.items())
    return "same" if same else "changed features"


def read_gzip():
    """Return the features as written if gzip takes the copy."""
    gzip.decompress(Path("copy.tar.gz").read_bytes())
    return written


def read_tarfile():
    """Return the features by video of copy.tar.gz, read by tarfile."""
    with tarfile.open("copy.tar.gz") as tar:
        members = [(member.name.split(".")[0], io.BytesIO(tar.extractfile(member).read())) for member in tar]
        return {name: np.load(file) for name, file in members}


generator = np.random.default_rng(0)
written = {f"video{i:02}": generator.standard_normal((30, 16)).astype(np.float32) for i in range(20)}
with webdataset.TarWriter("shard.tar", mtime=0) as writer:
    for name, x in written.items():
        writer.write({"__key__": name, "rgb.npy": x})
shard = gzip.compress(Path("shard.tar").read_bytes(), mtime=0)
Path("copy.tar.gz").write_bytes(shard)
assert outcome(read) == outcome(read_tarfile) == "same"
flips = random.Random(0)
readers = {"gzip": read_gzip, "tarfile.open": read_tarfile, "webdataset": read}
seen = {name: Counter() for name in readers}
for _ in range(150):
    copy = bytearray(shard)
    copy[flips.randrange(10, len(copy) - 8)] ^= 1 << flips.randrange(8)
    Path("copy.tar.gz").write_bytes(copy)
    for name, reader in readers.items():
        seen[name][outcome(reader)] += 1
kinds = ("error", "changed features", "fewer videos", "same")
print(f"{'':<12}", *(f"{kind:>18}" for kind in kinds))
for name, counts in seen.items():
    print(f"{name:<12}", *(f"{counts[kind]:>18}" for kind in kinds))
unnoticed = min(seen[name]["changed features"] for name in ("tarfile.open", "webdataset"))
sys.exit(seen["gzip"]["error"] != 150 or unnoticed < 75)
PYTHON
