"""Seconds for a million weights, quantised and back, beside the authors' way with the same codes.

Weights are normal, in rows of 1000. What is slow gets fewer of them: a million for the authors' way,
4 million for codebooks that need sorting.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from measure import Peer, Times, options, pin, print_json, print_table, run_rounds, seconds, timed
from reeltag.artifact.quantization.encodings import QuantizedTensor
from reeltag.artifact.quantization.quantize import quantize_tensor, quantize_uniform
from reeltag.core.tensorfile import _crc

PEER = "the authors' way, uniform-8"
UNIFORM = "uniform-8"
FAST, SORTING = (UNIFORM, "channel-8", "group-4", "float16"), ("kmeans-8", "quantile-8")
PEER_MILLIONS = 1
REACH = {38: 0.5, 321: 4.0}  # seconds for so many million


def ours(weights: torch.Tensor, few: torch.Tensor) -> dict[str, Callable[[], Times]]:
    """Return the timed functions; each returns seconds for a million values."""
    rows: dict[str, Callable[[], Times]] = {}
    for encoding in (*FAST, *SORTING):
        tensor = weights if encoding in FAST else few
        rows[encoding] = partial(timed, partial(quantize_tensor, tensor, encoding), tensor.numel() / 1e6)
    for encoding in FAST:
        coded = quantize_tensor(weights, encoding)
        assert isinstance(coded, QuantizedTensor)
        rows[f"{encoding}, back to float32"] = partial(timed, coded.dequantize, weights.numel() / 1e6)
    rows["checksum of uniform-8"] = partial(
        timed, partial(_crc, quantize_uniform(weights).codes.numpy()), weights.numel() / 1e6
    )
    return rows


def refuse_difference(peer: Peer, tensor: torch.Tensor, path: Path) -> None:
    """Stop unless every code is the same."""
    peer.ask("codes", path)
    if different := int((np.load(path) != quantize_uniform(tensor).codes.numpy()).sum()):
        raise SystemExit(f"{different} codes of {tensor.numel():,} are not the authors'")


def main() -> None:
    parser = options("Quantising, in seconds for a million weights.")
    parser.add_argument("--millions", type=int, default=38, help="of weights")
    arguments = parser.parse_args()
    pin()
    torch.set_num_threads(1)
    weights = torch.randn(arguments.millions * 1000, 1000, generator=torch.Generator().manual_seed(0))
    rows = ours(weights, weights[:4000])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.npy"
        np.save(path, weights[:1000].numpy())
        with Peer.find(arguments.peers, "peer_quantize.py", str(path)) as peer:
            if peer:
                refuse_difference(peer, weights[:1000], Path(folder) / "codes.npy")
                rows[PEER] = partial(peer.timed, PEER_MILLIONS, "pass")
            passes = run_rounds(rows, arguments.rounds)
    table = seconds(passes, PEER, per="cpu")
    for name in table.keys() - {UNIFORM, PEER}:
        table[name].pop("ratio", None)  # the authors' way does something else
    print(
        f"Seconds for a million of {arguments.millions} million weights, {arguments.rounds} rounds in turns on one core"
    )
    if peer:
        print(f"Peer: {peer.name}, on a million\n")
    print_table(table, PEER)
    million = table[UNIFORM]["cpu_seconds"]["median"]
    for millions, limit in REACH.items():
        print(f"{millions} million in uniform-8: {millions * million:.2f} s, to be at most {limit} s")
    content = {"millions": arguments.millions, "rounds": arguments.rounds, "peer": peer and peer.name, "against": PEER}
    print_json(arguments.json, "quantize", **content, reach=REACH, rows=table)


if __name__ == "__main__":
    main()
