"""GAP@20, Hit@1, PERR and mAP of 20,000 videos with 3862 classes, beside YouTube-8M's starter code.

The predictions are made up: few classes are likely, and labels mostly among them. Both must find the same scores; the
starter code shuffles ties and we keep them in order, so the few that float32 has may differ.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from measure import Peer, Times, options, pin, print_json, print_table, run_rounds, seconds, timed
from reeltag.inference.metrics.video_metrics import Metrics

CLASSES, BATCHES = 3862, (64, 256, 1024)
PEER, TOLERANCE, REACH = "starter code", 5e-4, 0.3


def predictions(videos: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, C] probabilities, and labels, about 3.4 a video."""
    rng = np.random.default_rng(0)
    likely = -2 - 1.5 * np.log(np.arange(1, CLASSES + 1), dtype=np.float32)
    logits = torch.from_numpy(rng.standard_normal((videos, CLASSES), np.float32) * 1.5 + likely)
    labels = torch.zeros(videos, CLASSES, dtype=torch.bool)
    for video, count in enumerate(rng.poisson(2.4, videos) + 1):
        labels[video, logits[video].topk(3 * count).indices[rng.permutation(3 * count)[:count]]] = True
    return torch.sigmoid(logits), labels


def measured(probabilities: torch.Tensor, labels: torch.Tensor, batch: int) -> dict[str, float]:
    parts = zip(probabilities.split(batch), labels.split(batch), strict=True)
    return Metrics.merge(Metrics.of(*part) for part in parts).compute().summary()


def refuse_difference(ours: dict[str, float], theirs: dict[str, float]) -> None:
    """Stop unless all four scores are alike."""
    for name, value in theirs.items():
        if abs(ours[name] - value) > TOLERANCE:
            raise SystemExit(f"{name}: {ours[name]} by reeltag and {value} by the starter code")


def main() -> None:
    parser = options("Metrics of YouTube-8M's size.")
    parser.add_argument("--videos", type=int, default=20_000)
    arguments = parser.parse_args()
    pin()
    torch.set_num_threads(1)
    probabilities, labels = predictions(arguments.videos)
    rows: dict[str, Callable[[], Times]] = {
        f"reeltag, batches of {batch:,}": partial(timed, partial(measured, probabilities, labels, batch))
        for batch in (*BATCHES, arguments.videos)
    }
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "scores.npy", probabilities.numpy())
        np.save(Path(folder) / "labels.npy", labels.numpy())
        with Peer.find(arguments.peers, "peer_metrics.py", folder) as peer:
            if peer:
                refuse_difference(measured(probabilities, labels, arguments.videos), peer.ask("scores"))
                rows[PEER] = partial(peer.ask, "pass")
            passes = run_rounds(rows, arguments.rounds)
    table = seconds(passes, PEER, per="cpu")
    print(f"{arguments.videos:,} videos of {CLASSES} classes, {arguments.rounds} rounds in turns on one core")
    if peer:
        print(f"Peer: {peer.name}\n")
    print_table(table, PEER)
    print(f"To be at most {REACH} s for 20,000 videos")
    content = {"videos": arguments.videos, "rounds": arguments.rounds, "peer": peer and peer.name, "against": PEER}
    print_json(arguments.json, "metrics", **content, reach=REACH, rows=table)


if __name__ == "__main__":
    main()
