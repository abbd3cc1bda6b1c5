"""Write the first video of shards as JSON, which the programs in this folder and `POST /predict` of the service read.

python write_clip.py model.reeltag 'shards/*.tfrecord' clip.json
"""

import json
import sys
from pathlib import Path

import numpy as np

import reeltag
from reeltag.core.storage import find_files
from reeltag.data.shards import read_examples

model, shards, out = sys.argv[1:]
video = next(iter(read_examples(find_files([shards]), reeltag.load(model).schema)))
frames = np.concatenate(video.features, axis=1)  # the features side by side
Path(out).write_text(json.dumps({"id": video.id, "frames": frames.tolist()}))
