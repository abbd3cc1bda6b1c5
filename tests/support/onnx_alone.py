"""Tag with an ONNX file by the example that uses onnxruntime and NumPy, where reeltag and torch cannot be imported."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

EXAMPLE = Path(__file__).parents[2] / "examples" / "anywhere" / "tag.py"
BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("reeltag", "torch"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
"""
CODE = f"""
{BLOCKED}
sys.path.insert(0, {str(EXAMPLE.parent)!r})
from tag import Model, np
model, inputs = Model(sys.argv[1]), np.load(sys.argv[2])
print("VideoId,LabelConfidencePairs")
for begin in range(0, len(inputs["ids"]), 64):
    part = slice(begin, begin + 64)
    scores = model.probabilities(inputs["frames"][part], inputs["lengths"][part])
    for name, row in zip(inputs["ids"][part], scores):
        best = np.argsort(-row, kind="stable")[:20]
        print(name + "," + " ".join(f"{{number}} {{row[number]:.6f}}" for number in best))
"""


def kaggle_csv(model, batches, folder):
    """Return lines of Kaggle's format for the videos of batches."""
    widest = max(batch.frames.shape[1] for batch in batches)
    frames = [np.pad(batch.frames.numpy(), ((0, 0), (0, widest - batch.frames.shape[1]), (0, 0))) for batch in batches]
    inputs = folder / "inputs.npz"
    lengths = np.concatenate([batch.lengths.numpy() for batch in batches])
    np.savez(
        inputs, ids=[name for batch in batches for name in batch.ids], frames=np.concatenate(frames), lengths=lengths
    )
    command = [sys.executable, "-c", CODE, str(model), str(inputs)]
    return subprocess.run(command, env=os.environ, capture_output=True, text=True, check=True).stdout.splitlines()


def assert_same_scores(lines, expected):
    """Assert that two lists of Kaggle's lines have the same videos in order, and the same scores to 5 decimals."""
    assert len(lines) == len(expected) > 1 and lines[0] == expected[0]
    for line, other in zip(lines[1:], expected[1:], strict=True):
        (name, scores), (theirs, others) = _pairs(line), _pairs(other)
        assert name == theirs
        # Where two scores are equal to the last digit, either class may be the twentieth.
        least = min(others.values()) + 2e-6
        assert {c for c, score in scores.items() if score > least} == {
            c for c, score in others.items() if score > least
        }
        assert all(abs(score - others[c]) < 5e-6 for c, score in scores.items() if c in others)


def _pairs(line):
    name, _, rest = line.partition(",")
    numbers = rest.split()
    return name, dict(zip(map(int, numbers[::2]), map(float, numbers[1::2]), strict=True))
