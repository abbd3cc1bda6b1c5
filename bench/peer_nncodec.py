"""NNCodec, the reference program of ISO/IEC 15938-17, for bench/rate.py.

It lives in an environment of its own, with `pip install --no-deps --requirement bench/peers-nncodec.txt`.
"""

import sys
import types
from importlib.metadata import version
from pathlib import Path

import numpy as np

from measure import serve

# Adapts the codec to PyTorch and TensorFlow and imports both; a dict of arrays needs neither.
framework = types.ModuleType("nncodec.framework")
framework.tensorflow_model = framework.pytorch_model = framework.use_case_init = None
sys.modules["nncodec.framework"] = framework
from nncodec import nnc  # noqa: E402


def main() -> None:
    """Answer each line, `STATE QP OUT`: compress the arrays of an npz, write them decoded, and count the bytes."""

    def answer(state: str, qp: str, out: str) -> dict[str, int]:
        arrays = dict(np.load(state))
        stream = nnc.compress(arrays, bitstream_path=None, return_bitstream=True, qp=int(qp))
        np.savez(Path(out), **nnc.decompress(stream))
        return {"bytes": len(stream)}

    serve(f"NNCodec {version('nncodec')}", answer)


if __name__ == "__main__":
    main()
