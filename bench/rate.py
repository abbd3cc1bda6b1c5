"""Bytes of models at a loss of GAP: encodings that need the weights alone, and `coded` at several steps, with and
without fine-tuning.

    python bench/rate.py RUN/stages/train.NAME-…/model.reeltag … --train 'bal_train-*.tfrecord' \
        --test 'eval-*.tfrecord' --out rate.jsonl

Writes a line of JSON a model and encoding: bytes of the file, loss of test GAP against float32, seconds. What the file
has already is not measured again. `--teachers` are models whose mean tuned weights learn; by default they learn the
model's own probabilities. `--nncodec PYTHON` measures NNCodec too (bench/peer_nncodec.py). `--table` prints,
instead, bytes at a loss of 0.0005, relative to group-4.
"""

import argparse
import itertools
import json
import time
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from measure import Peer
from reeltag.artifact.file import load_artifact, quantize_artifact, save_artifact
from reeltag.artifact.quantization.calibration import calibrate
from reeltag.artifact.quantization.coded import Encoder
from reeltag.artifact.quantization.encodings import CodedTensor
from reeltag.artifact.quantization.quantize import dequantize_state
from reeltag.core.progress import Progress
from reeltag.core.storage import find_files
from reeltag.data.loader import sequential_batches, training_batches
from reeltag.data.sampler import Shuffle
from reeltag.data.shards import Shards, scan
from reeltag.inference.evaluate import artifact_gap
from reeltag.inference.predictor import load
from reeltag.training.quantization_aware import RoundedWeights, fine_tune

STEPS = [1.4e-4, 2e-4, 2.8e-4, 4e-4, 5.6e-4, 8e-4, 1.1e-3, 1.6e-3]
QPS = [-36, -32, -28, -24, -20]  # of NNCodec; four more double its step
LOSS = 0.0005


def measured(path, args, done):
    """Yield a record of each encoding that is not done."""
    source = load_artifact(path)
    (member,) = source.members
    train, test = (scan(find_files(pattern), source.schema, labelled=True) for pattern in (args.train, args.test))

    def record(encoding, artifact, seconds):
        with TemporaryDirectory() as folder:
            size = save_artifact(Path(folder) / "m.reeltag", artifact)
        gap = artifact_gap(artifact, sequential_batches(Shards(test), batch_size=64))
        return {"model": str(path), "encoding": encoding, "bytes": size, "gap": gap, "seconds": round(seconds, 1)}

    names = ["float32", "uniform-8", "group-4"]
    for name in names:
        if (str(path), name) not in done:
            yield record(name, quantize_artifact(source, name), 0.0)
    for qp in QPS if args.nncodec else ():
        if (str(path), f"nncodec@{qp}") not in done:
            size, gap = with_nncodec(source, qp, args.nncodec, test)
            yield {"model": str(path), "encoding": f"nncodec@{qp}", "bytes": size, "gap": gap, "seconds": 0.0}
    wanted = [(step, tuned) for step in STEPS for tuned in ((False, True) if step in args.tuned else (False,))]
    wanted = [(s, t) for s, t in wanted if (str(path), f"{'tuned' if t else 'coded'}@{s:g}") not in done]
    if not wanted:
        return
    begin = time.perf_counter()
    statistics = calibrate(member.build(source.schema), sequential_batches(Shards(train), batch_size=64), 1)
    encoder = Encoder(member.state, statistics)
    print(f"{member.name}: calibrated in {time.perf_counter() - begin:.0f} s", flush=True)
    targets = taught(args.teachers, train) if args.teachers else None
    for step, tuned in wanted:
        begin = time.perf_counter()
        state = encoder.encode(step)
        if tuned:
            codes = {name: value for name, value in state.items() if isinstance(value, CodedTensor)}
            others = dequantize_state({name: value for name, value in state.items() if name not in codes})
            pairs = {name: (value.codes, value.steps) for name, value in codes.items()}
            weights = RoundedWeights(pairs, others, encoder.units(step))
            indices = np.arange(len(train))

            def batches(steps, indices=indices):
                return training_batches(
                    Shards(train), indices, shuffle=Shuffle(1, None), batch_size=256, steps=steps, targets=targets
                )

            with TemporaryDirectory() as folder:
                path_ = Path(folder) / "c"
                fine_tune(
                    member.build(source.schema),
                    weights,
                    batches,
                    steps=args.tune,
                    seed=1,
                    dropout=min(args.dropout, member.config.dropout),
                    path=path_,
                    progress=Progress(),
                )
            rounded = {name: replace(codes[name], codes=each) for name, each in weights.codes().items()}
            state = {**state, **rounded, **encoder.stored(weights.tuned())}
        artifact = replace(source, members=(replace(member, state=state),))
        yield record(f"{'tuned' if tuned else 'coded'}@{step:g}", artifact, time.perf_counter() - begin)


def taught(paths, train):
    """Return the function from indices of training videos to the mean probabilities of the models."""
    batches = partial(sequential_batches, Shards(train), batch_size=256)
    models = [load(path, "exact").model for path in paths]
    with torch.no_grad():
        mean = torch.cat([sum(m(b.frames, b.lengths) for m in models) / len(models) for b in batches()])
    return lambda indices: mean[torch.from_numpy(indices)]


def with_nncodec(source, qp, python, test):
    """Return NNCodec's bytes of a model, and the GAP of the weights that it decodes."""
    (member,) = source.members
    with TemporaryDirectory() as folder, Peer.find(python, "peer_nncodec.py") as peer:
        state, out = Path(folder, "state.npz"), Path(folder, "decoded.npz")
        floats = {name: value.numpy() for name, value in member.state.items() if value.is_floating_point()}
        np.savez(state, **floats)
        size = peer.ask(state, qp, out)["bytes"]
        with np.load(out) as arrays:
            decoded = {name: torch.from_numpy(arrays[name]).view(member.state[name].shape) for name in floats}
    artifact = replace(source, members=(replace(member, state={**member.state, **decoded}),))
    return size, artifact_gap(artifact, sequential_batches(Shards(test), batch_size=64))


def table(records):
    """Print bytes at the loss, interpolated between the steps around it, relative to group-4."""
    models = defaultdict(dict)
    for each in records:
        models[each["model"]][each["encoding"]] = each
    print(
        "| model | float32 GAP | uniform-8 | group-4 (loss) | coded | tuned | NNCodec |\n|---|---|---|---|---|---|---|"
    )
    shares = defaultdict(list)
    for model, found in models.items():
        before, base = found["float32"]["gap"], found["group-4"]
        cells = []
        for kind in ("coded", "tuned", "nncodec"):
            points = sorted(
                (each["bytes"], before - each["gap"]) for name, each in found.items() if name.startswith(f"{kind}@")
            )
            at = crossing(points)
            cells.append("–" if at is None else f"{at / 1e6:.3f} MB, {at / base['bytes']:.2f}")
            if at is not None:
                shares[kind].append(at / base["bytes"])
        name = Path(model).parent.name.rpartition("-")[0]
        print(
            f"| {name} | {before:.5f} | {found['uniform-8']['bytes'] / 1e6:.3f} MB | {base['bytes'] / 1e6:.3f} MB "
            f"({before - base['gap']:+.5f}) | {' | '.join(cells)} |"
        )
    for kind, each in shares.items():
        print(f"{kind}: mean {np.mean(each):.3f}, most {max(each):.3f}, of group-4, {len(each)} models")


def crossing(points):
    """Return the bytes at the allowed loss: the smallest size from which on no larger one loses more."""
    allowed = None
    for (size, loss), (larger, less) in itertools.pairwise(points):
        if less <= LOSS:
            if loss > LOSS:
                share = (loss - LOSS) / (loss - less)
                allowed = size * (larger / size) ** share
            elif allowed is None:
                allowed = size
    return allowed


def main():
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--train")
    parser.add_argument("--test")
    parser.add_argument("--tune", type=int, default=300)
    parser.add_argument("--dropout", type=float, default=0.25, help="most dropout of fine-tuning")
    parser.add_argument("--teachers", nargs="*", type=Path, default=[])
    parser.add_argument("--tuned", type=float, nargs="*", default=[4e-4, 5.6e-4, 8e-4])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--nncodec", type=Path, metavar="PYTHON", help="an interpreter that has NNCodec")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    records = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    if args.table:
        table(records)
        return
    done = {(each["model"], each["encoding"]) for each in records}
    for path in args.models:
        for each in measured(path, args, done):
            print(json.dumps(each), flush=True)
            with args.out.open("a") as file:
                file.write(json.dumps(each) + "\n")


if __name__ == "__main__":
    main()
