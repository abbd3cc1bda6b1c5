"""Tag clips with onnxruntime and NumPy alone: no reeltag, no PyTorch.

python tag.py model.onnx clip.json …
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before onnxruntime is imported

import numpy as np
import numpy.typing as npt
import onnxruntime


class Model:
    """A file of `reeltag export`, without `--top`.

    Attributes:
        schema: what the model reads: `features` with their `width`, `dtype`, `classes`, `max_frames`.
        names: of the C classes.
    """

    def __init__(self, file: str) -> None:
        options = onnxruntime.SessionOptions()
        # Computes with the weights exactly as they are stored; without it probabilities differ by up to 1e-4.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        self.session = onnxruntime.InferenceSession(file, options)
        known = self.session.get_modelmeta().custom_metadata_map
        self.schema: dict[str, Any] = json.loads(known["reeltag.schema"])
        self.names: list[str] = json.loads(known["reeltag.label_names"]) or [*map(str, range(self.schema["classes"]))]

    def probabilities(self, frames: npt.NDArray[Any], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Tag several clips at once.

        Args:
            frames: [B, T, D] of the schema's dtype, the features side by side; what follows a clip's end is ignored.
            lengths: frames of each clip [B].

        Returns:
            Probabilities [B, C].
        """
        (found,) = self.session.run(["probabilities"], {"frames": frames, "lengths": lengths})
        return found


def main(file: str, *clips: str) -> None:
    """Print the five most probable classes of each clip."""
    model = Model(file)
    for clip in clips:
        numbers = np.array(json.loads(Path(clip).read_text())["frames"])
        frames = numbers.astype(model.schema["dtype"])[None]
        if not np.allclose(frames[0], numbers):
            sys.exit(f"{clip}: has a value that is not {model.schema['dtype']}")
        (scores,) = model.probabilities(frames, np.array([frames.shape[1]]))
        print(clip)
        for number in np.argsort(-scores, kind="stable")[:5]:
            print(f"  {scores[number]:.6f}  {number}  {model.names[number]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
