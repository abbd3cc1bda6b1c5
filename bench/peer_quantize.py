"""Uniform quantising as the authors' program computes it, for bench/quantize.py; written after its description.

The tensor flat, 256 values evenly spaced from its minimum to its maximum in float64, SciPy's vector quantiser (which
compares every element with all 256), the codes as uint8 in the tensor's shape. Reading and writing of checkpoints and
TensorFlow's session, which the program adds, are left out.
"""

import sys
from functools import partial

import numpy as np
import scipy
from scipy.cluster.vq import vq

from measure import Times, serve, timed


def quantize(tensor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and codebook."""
    flat = tensor.flatten()
    # The authors' NumPy made float64 of float32 ends, which NumPy 2 no longer does by itself.
    space = np.linspace(float(flat.min()), float(flat.max()), num=256)
    return vq(flat, space)[0].reshape(tensor.shape).astype(np.uint8), space.astype(np.float32)


def main() -> None:
    """Answer each line: `codes PATH` writes them there, `pass` says what the tensor takes."""
    tensor = np.load(sys.argv[1])

    def answer(command: str, *path: str) -> Times | None:
        return timed(partial(quantize, tensor)) if command == "pass" else np.save(*path, quantize(tensor)[0])

    serve(f"SciPy {scipy.__version__}, NumPy {np.__version__}", answer)


if __name__ == "__main__":
    main()
