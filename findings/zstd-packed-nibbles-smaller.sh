#!/usr/bin/env bash
# zstandard 0.25.0 (libzstd 1.5.7), numpy 2.3.5
#
# Behaviour: a million 4-bit codes of Gaussian weights, -7 to 7, that do not depend on each other. In a byte each, they
# become smallest at levels 16 to 22, then at level 1, and all of levels 2 to 15 are worse than level 1: repeats of a
# few codes, which are chance here, cost more than Huffman codes of the same bytes, and level 1 passes by short repeats.
# Packed two in a byte, the same codes take less at any level than unpacked at the best level, and the level changes
# next to nothing: runs of such bytes repeat too rarely to be tried, and Huffman codes of pairs waste less than those of
# single codes. At the default level 3 the unpacked codes take 19 % more. Packing thus wins although it hides each
# code from a compressor that works on bytes. It does not hold for codes that are all equally likely.
#
# Guess before running: packed codes take no less than unpacked ones, whose bytes are the symbols and whose entropy is
# the same; and a higher level takes no more than level 1.
#
# Output seen:
#   entropy               401407
#   level               unpacked   packed
#       1                 415149   406020
#       3                 482751   406022
#       9                 460755   406020
#      15                 459794   406028
#      16                 409257   406180
#      19                 409547   406314
#   least of 1 to 22      409257   406020
#   most of 1 to 22       482751   406384
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet zstandard==0.25.0 numpy==2.3.5
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import zstandard

weights = np.random.default_rng(0).standard_normal(1 << 20)
codes = (np.clip(np.round(weights * 2), -7, 7) + 8).astype(np.uint8)
packed = codes[::2] | codes[1::2] << 4
share = np.bincount(codes)[1:] / codes.size
print(f"entropy              {int(-(share * np.log2(share)).sum() * codes.size / 8):>7}")


def sizes(array):
    """Return the compressed bytes by level."""
    return {level: len(zstandard.ZstdCompressor(level=level).compress(array.tobytes())) for level in range(1, 23)}


unpacked, packed = sizes(codes), sizes(packed)
print("level               unpacked   packed")
for level in (1, 3, 9, 15, 16, 19):
    print(f"{level:>5}                {unpacked[level]:>7}  {packed[level]:>7}")
for name, of in (("least", min), ("most", max)):
    print(f"{name + ' of 1 to 22':<20} {of(unpacked.values()):>7}  {of(packed.values()):>7}")
rises = unpacked[1] < min(unpacked[level] for level in range(2, 16))
packed_wins = max(packed.values()) < min(unpacked.values())
much = unpacked[3] > 1.15 * packed[3]
sys.exit(not (rises and packed_wins and much))
PYTHON
