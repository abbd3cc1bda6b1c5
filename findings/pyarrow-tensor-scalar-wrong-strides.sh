#!/usr/bin/env bash
# pyarrow 26.0.1, numpy 2.4.6, pandas 3.1.1
#
# Behaviour: features that are computed as [D, T] (spectrograms, say) and transposed keep their order in memory, also
# through np.stack. FixedShapeTensorArray.from_numpy_ndarray stores them as they lie and notes a permutation in the
# type, which survives Parquet. Reading the column at once, to_numpy_ndarray(), gives the right features; one row of it,
# column[i].to_numpy() or column[i].to_tensor(), has the right shape and dtype but wrong strides: it holds values of
# other places, some twice and some never. to_pandas and to_pylist give the values in the order of memory, with the
# permutation dropped, so that a reshape to [T, D] scrambles them too. With rows contiguous all of them are right.
# Besides, to_numpy_ndarray() refuses a column with a tensor that is null, and gives 0 for a null within a tensor.
#
# Guess before running: np.stack makes rows contiguous, so there is no permutation; and were there one, a scalar
# respects it as the array does. A null within a tensor is refused.
#
# Output seen (videos of 4 frames, 2 features; True where the features are right):
#   made as                     permutation   column   scalar   pandas, reshaped
#   np.stack([x.T, ...])        [1, 0]        True     False    False
#   the same, made contiguous   [0, 1]        True     True     True
#   written 0 4 1 5 2 6 3 7, scalar 0 2 1 3 2 4 3 5
#   1 null 3 4 as a tensor, column: 1 0 3 4
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet pyarrow==26.0.1 numpy==2.4.6 pandas==3.1.1
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

spectrograms = [np.arange(8, dtype=np.float32).reshape(2, 4) + 100 * i for i in range(3)]
transposed = np.stack([x.T for x in spectrograms])
print("made as                     permutation   column   scalar   pandas, reshaped")
seen = []
for name, videos in (("np.stack([x.T, ...])", transposed), ("the same, made contiguous", transposed.copy(order="C"))):
    pq.write_table(pa.table({"rgb": pa.FixedShapeTensorArray.from_numpy_ndarray(videos)}), "videos.parquet")
    column = pq.read_table("videos.parquet")["rgb"].combine_chunks()
    scalar = column[0].to_numpy()
    right = (
        np.array_equal(column.to_numpy_ndarray(), transposed),
        np.array_equal(scalar, transposed[0]),
        np.array_equal(column.to_pandas()[0].reshape(4, 2), transposed[0]),
    )
    print(f"{name:<27} {column.type.permutation!s:<12}  {right[0]!s:<8} {right[1]!s:<8} {right[2]}")
    seen.append((right, scalar.shape, scalar.dtype, scalar.ravel().astype(int).tolist()))
print("written", *transposed[0].ravel().astype(int), end=", scalar ")
print(*seen[0][3])
storage = pa.array([[1, None, 3, 4]], pa.list_(pa.float32(), 4))
tensor = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), (2, 2)), storage)
with_null = tensor.to_numpy_ndarray().ravel().astype(int).tolist()
print("1 null 3 4 as a tensor, column:", *with_null)
expected = [
    ((True, False, False), (4, 2), np.float32, [0, 2, 1, 3, 2, 4, 3, 5]),
    ((True, True, True), (4, 2), np.float32, [0, 4, 1, 5, 2, 6, 3, 7]),
]
sys.exit(seen != expected or with_null != [1, 0, 3, 4])
PYTHON
