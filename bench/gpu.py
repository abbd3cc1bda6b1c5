"""Training and tagging on a GPU, beside what its memory and its arithmetic allow; every configuration of a recipe.

The floor of a training step is the longer of two times: that of the products (counted on the real model, and three
times as many as for tagging) at the speed of a large matrix product, and that of the bytes that have to pass the
memory (weights, Adam's moments, what autograd keeps, frames) at the speed of a large copy. Both speeds are measured
in the same run. Steps are the real ones: uint8 batches from pinned memory, mixed precision, fused Adam.

Without a GPU it says so and ends; `--device cpu --models dbof-3684 --batch 4` goes through all of it anywhere.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from measure import options, print_json, spread
from reeltag.data.formats.example import Video, encode
from reeltag.data.formats.tfrecord import write_shard
from reeltag.data.loader import Batch, training_batches
from reeltag.data.sampler import Shuffle
from reeltag.data.schema import Schema
from reeltag.data.shards import Shards, scan
from reeltag.inference.ensemble import BATCH_SIZE, Ensemble, predict_batches
from reeltag.models.config import TaggerConfig
from reeltag.models.tagger import Tagger, build_tagger, meta_tagger
from reeltag.pipeline.stages.gpu_hours import FORWARD_AND_BACKWARD, flops
from reeltag.recipe.load import load_recipe
from reeltag.recipe.schema import Recipe
from reeltag.training.replica import Replica
from reeltag.training.schedule import TrainingSettings

RECIPE = Path(__file__).parent.parent / "recipes" / "yt8m-2018.toml"
VIDEOS = 4_769_202  # of YouTube-8M, that hours are projected for
# A step's bytes for each weight: 4 read by the forward pass, 4 of its gradient written and read again for its length,
# 16 read and 12 written by Adam. The half-precision copies are among what autograd keeps.
WEIGHT_BYTES = 4 + 4 + 4 + 16 + 12
LEAST_SHARE, SHARE_FAMILIES = 0.5, ("netvlad", "netfv")  # of the floor's rate, that training has to reach
MOST_WAIT = 0.05  # of the time of training, for the loader
WARM_UP = 5
REPEATED, REPEATED_STEPS = 3, 20  # trainings from the same weights, to see whether they stay the same
T = TypeVar("T")


@dataclass(frozen=True)
class Peaks:
    """Measured peaks of the device: operations a second in bfloat16, bytes a second through its memory."""

    bfloat16: float
    memory: float


@dataclass(frozen=True)
class Bench:
    """Settings of the measurement."""

    device: torch.device
    schema: Schema
    rounds: int
    seconds: float  # of a round

    def wait(self) -> None:
        """Until the device has done all it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def free(self) -> None:
        """Memory of models before; what was compiled too, because torch gives up on the ninth of one class."""
        torch.compiler.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def rates(self, step: Callable[[], float]) -> list[float]:
        """Return the count that `step` returns, a second, in every round."""
        for _ in range(WARM_UP):
            step()
        return [self._rate(step) for _ in range(self.rounds)]

    def _rate(self, step: Callable[[], float]) -> float:
        self.wait()
        begin, done = time.perf_counter(), 0.0
        while time.perf_counter() - begin < self.seconds:
            done += step()
        self.wait()
        return done / (time.perf_counter() - begin)

    def peaks(self) -> Peaks:
        """The best round of a large product and of a large copy."""
        gpu = self.device.type == "cuda"
        side, size = (8192, 1 << 30) if gpu else (1024, 1 << 26)

        matrix = torch.randn(side, side, device=self.device).bfloat16()
        source = torch.ones(size, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        memory = max(self.rates(lambda: self._done(lambda: target.copy_(source), 2 * size)))
        arithmetic = max(self.rates(lambda: self._done(lambda: matrix @ matrix, 2 * side**3)))
        return Peaks(arithmetic, memory)

    def _done(self, call: Callable[[], Any], count: int) -> float:
        call()
        self.wait()
        return count

    def random_batches(self, size: int) -> Iterator[Batch]:
        """Two batches of whole videos by turns, pinned where there is a GPU."""
        shape, batches = (size, self.schema.max_frames, self.schema.width), []
        for _ in range(2):
            labels = torch.rand(size, self.schema.classes) < 1e-3
            lengths = torch.full((size,), self.schema.max_frames)
            batch = Batch(("",) * size, torch.randint(0, 256, shape, dtype=torch.uint8), lengths, labels)
            batches.append(batch.pin_memory() if self.device.type == "cuda" else batch)
        return cycle(batches)


class Trainer:
    """A model in training, as `Trainer` of reeltag sets it up; its weights are discarded."""

    def __init__(self, bench: Bench, config: TaggerConfig, settings: TrainingSettings, *, compiled: bool) -> None:
        self.tagger = build_tagger(config, bench.schema.widths, bench.schema.classes, 0).train()
        if compiled:
            self.tagger.compile()
        self.settings, self.steps = settings, 0
        self.replica = Replica(
            self.tagger, settings.model_copy(update={"precision": "bf16-mixed", "device": bench.device.type})
        )

    def step(self, batch: Batch) -> int:
        """One step; how many videos it sees."""
        self.steps += 1  # other draws each time, so other numbers of frames
        self.replica.train_step(batch, seed=self.steps)
        return len(batch)

    def floor_bytes(self, batch: Batch) -> int:
        """Bytes that a step has to move: each kept tensor is written once and read once."""
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = max(storage.nbytes(), kept.get(storage.data_ptr(), 0))
            return tensor.detach()  # an output that keeps itself would never be freed

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self.step(batch)
        weights = list(self.tagger.parameters())
        for weight in weights:
            kept.pop(weight.untyped_storage().data_ptr(), None)
        return WEIGHT_BYTES * sum(map(torch.numel, weights)) + 2 * sum(kept.values()) + batch.frames.nbytes


def fitting(size: int, attempt: Callable[[int], T]) -> tuple[int, T]:
    """The result with the largest batch that the memory holds, halved from `size` down."""
    while True:
        try:
            return size, attempt(size)
        except torch.cuda.OutOfMemoryError:
            if size == 2:  # batch norm needs two
                raise
        size = max(2, size // 2)


def training(
    bench: Bench, config: TaggerConfig, settings: TrainingSettings, size: int, *, compiled: bool
) -> dict[str, Any]:
    """Videos a second, the most memory allocated, and in eager mode the bytes of the floor."""
    bench.free()
    trainer = Trainer(bench, config, settings, compiled=compiled)
    batches = bench.random_batches(size)
    found: dict[str, Any] = {"batch": size}
    if not compiled:
        found["floor_bytes"] = trainer.floor_bytes(next(batches))
    found["videos_per_second"] = spread(bench.rates(lambda: trainer.step(next(batches))))
    if bench.device.type == "cuda":
        found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def apart(bench: Bench, config: TaggerConfig, settings: TrainingSettings, size: int) -> float:
    """The largest difference of a weight between trainings of the same steps on the same batches."""
    batches = list(islice(bench.random_batches(size), 2))

    def trained() -> dict[str, torch.Tensor]:
        bench.free()
        trainer = Trainer(bench, config, settings, compiled=False)
        for batch in islice(cycle(batches), REPEATED_STEPS):
            trainer.step(batch)
        return {name: weight.detach().cpu() for name, weight in trainer.tagger.named_parameters()}

    first, *others = (trained() for _ in range(REPEATED))
    return max(float((first[name] - other[name]).abs().max()) for other in others for name in first)


def tagging(bench: Bench, config: TaggerConfig, *, compiled: bool) -> dict[str, float]:
    """Videos a second of `predict` in bf16."""
    bench.free()
    tagger = build_tagger(config, bench.schema.widths, bench.schema.classes, 0)
    if compiled:
        tagger.compile()
    model = Ensemble([tagger], [1.0], "bf16").to(bench.device).eval()
    predictions = predict_batches(model, bench.random_batches(BATCH_SIZE))
    return spread(bench.rates(lambda: len(next(predictions).ids)))


def data_wait(bench: Bench, shards: Shards, trainer: Trainer, size: int, workers: int) -> float:
    """Share of a training's time in which it waits for the loader, once the first batches have come."""
    batches = training_batches(
        shards,
        np.arange(len(shards)),
        shuffle=Shuffle(0),
        batch_size=size,
        steps=range(1_000_000),
        workers=workers,
        pin=bench.device.type == "cuda",
    )
    for batch in islice(batches, max(WARM_UP, 2 * workers)):  # what the workers had time to prepare
        trainer.step(batch)
    begin, waited = time.perf_counter(), 0.0
    while (now := time.perf_counter()) - begin < bench.seconds * bench.rounds:
        batch = next(batches)
        waited += time.perf_counter() - now
        trainer.step(batch)
    share = waited / (time.perf_counter() - begin)
    batches.close()  # type: ignore[attr-defined]  # ends the workers
    return share


def random_shards(folder: Path, schema: Schema, videos: int) -> Shards:
    """Shards of random videos of the greatest length; they stay in the page cache."""
    path, rng = folder / "train.tfrecord", np.random.default_rng(0)

    def video(number: int) -> Video:
        frames = (rng.integers(0, 256, (schema.max_frames, width), np.uint8) for width in schema.widths)
        return Video(str(number), rng.choice(schema.classes, 3, replace=False), tuple(frames))

    write_shard(path, (encode(video(number), schema) for number in range(videos)))
    return Shards(scan([path], schema))


def drawn_frames(frames: int, settings: TrainingSettings, tagger: Tagger) -> int:
    """Return the number of distinct frames of a video that a step reads; frames sampled twice are read once."""
    if settings.frames == "all" or tagger.pooling.ordered:
        return frames
    return round(frames * (1 - (1 - 1 / frames) ** settings.frames))


def measure(
    bench: Bench, config: TaggerConfig, settings: TrainingSettings, peaks: Peaks, *, shards: Shards, workers: int
) -> dict[str, Any]:
    """All about one configuration."""
    meta = meta_tagger(config, bench.schema.widths, bench.schema.classes)
    count = partial(flops, config, bench.schema.widths, bench.schema.classes)
    operations = count(bench.schema.max_frames)
    trained_on = count(drawn_frames(bench.schema.max_frames, settings, meta))
    weights = sum(map(torch.numel, meta.parameters()))
    size, eager = fitting(settings.batch_size, lambda size: training(bench, config, settings, size, compiled=False))
    times = {
        "arithmetic": FORWARD_AND_BACKWARD * trained_on * size / peaks.bfloat16,
        "memory": eager["floor_bytes"] / peaks.memory,
    }
    bound = max(times, key=times.__getitem__)
    frame_bytes = BATCH_SIZE * bench.schema.max_frames * bench.schema.width
    tag_time = max(operations * BATCH_SIZE / peaks.bfloat16, (2 * weights + frame_bytes) / peaks.memory)
    _, compiled = fitting(size, lambda size: training(bench, config, settings, size, compiled=True))
    tags = {name: tagging(bench, config, compiled=on) for name, on in MODES.items()}
    bench.free()
    trainer = Trainer(bench, config, settings, compiled=False)
    share = eager["videos_per_second"]["median"] * times[bound] / size
    waited = data_wait(bench, shards, trainer, size, workers)
    reached = {"data wait": waited <= MOST_WAIT}
    if config.family in SHARE_FAMILIES:
        reached["share of the floor's rate"] = share >= LEAST_SHARE
    return {
        "weights": weights,
        "batch": size,
        "batch_wanted": settings.batch_size,
        "training": {"eager": eager, "compiled": compiled},
        "floor": {"bound": bound, "seconds": times, "videos_per_second": size / times[bound]},
        "share": share,
        "data_wait": waited,
        "reached": reached,
        "apart": apart(bench, config, settings, size),
        "tagging": tags,
        "tagging_share": tags["eager"]["median"] * tag_time / BATCH_SIZE,
    }


MODES = {"eager": False, "compiled": True}


def configurations(recipe: Recipe) -> dict[str, tuple[TaggerConfig, TrainingSettings]]:
    """Models and students of a recipe, by name."""
    tables = recipe.models | recipe.students
    return {name: (table.config, recipe.training_with(table.training)) for name, table in tables.items()}


def gpu_hours(recipe: Recipe, rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Hours of the whole recipe at the measured rates: all trainings, and every model tagging every video once."""
    epochs = recipe.averaging.epochs if recipe.averaging else 0.0
    hours = {"training": 0.0, "tagging": 0.0}
    for name, (_, settings) in configurations(recipe).items():
        row = rows[name]
        seen = (settings.epochs + epochs) * VIDEOS
        hours["training"] += seen / row["training"]["eager"]["videos_per_second"]["median"] / 3600
        hours["tagging"] += VIDEOS / row["tagging"]["eager"]["median"] / 3600
    return hours


def print_head() -> None:
    """Of the table, in Markdown; all numbers are medians."""
    print("| | million weights | batch | training, videos/s | compiled | floor | share | peak GB | data wait", end=" ")
    print("| tagging, videos/s | compiled | share |")
    print("|---" * 12 + "|")


def print_row(name: str, row: dict[str, Any]) -> None:
    """One configuration."""
    eager, compiled = row["training"]["eager"], row["training"]["compiled"]
    cells = [
        f"{row['weights'] / 1e6:.1f}",
        f"{row['batch']}" + (f" of {row['batch_wanted']}" if row["batch"] < row["batch_wanted"] else ""),
        f"{eager['videos_per_second']['median']:,.4g}",
        f"{compiled['videos_per_second']['median']:,.4g}",
        f"{row['floor']['videos_per_second']:,.4g} ({row['floor']['bound']})",
        f"{row['share']:.0%}",
        f"{eager['peak_gb']:.1f}" if "peak_gb" in eager else "",
        f"{row['data_wait']:.1%}",
        *(f"{row['tagging'][mode]['median']:,.4g}" for mode in MODES),
        f"{row['tagging_share']:.0%}",
    ]
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = options("Training and tagging on a GPU, beside what the device allows.", rounds=5)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--models", nargs="+", default=["*"], help="patterns of names in the recipe; all by default")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, help="instead of the recipe's")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a round")
    parser.add_argument("--videos", type=int, default=1000, help="in the generated shards")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("No CUDA GPU here, so there is nothing to measure")
        print_json(arguments.json, "gpu", device=None)
        return
    recipe = load_recipe(arguments.recipe)
    bench = Bench(torch.device(arguments.device), recipe.data.record_schema, arguments.rounds, arguments.seconds)
    device = torch.cuda.get_device_name() if bench.device.type == "cuda" else arguments.device
    peaks = bench.peaks()
    print(f"{device}: {peaks.bfloat16 / 1e12:.4g} TFLOP/s in bfloat16,", end=" ")
    print(f"{peaks.memory / 1e9:.4g} GB/s; {arguments.rounds} rounds of {arguments.seconds} s\n")
    print_head()
    workers = min(recipe.training.workers, max(1, (os.cpu_count() or 1) - 1))
    rows: dict[str, dict[str, Any]] = {}
    known: dict[str, dict[str, Any]] = {}  # students often have a model's configuration
    with tempfile.TemporaryDirectory() as folder:
        shards = random_shards(Path(folder), bench.schema, arguments.videos)
        for name, (config, settings) in configurations(recipe).items():
            if any(fnmatch(name, pattern) for pattern in arguments.models):
                own = settings.model_copy(update={"batch_size": arguments.batch or settings.batch_size})
                key = config.model_dump_json() + own.model_dump_json(exclude={"epochs", "workers"})
                if key not in known:
                    known[key] = measure(bench, config, own, peaks, shards=shards, workers=workers)
                rows[name] = known[key]
                print_row(name, rows[name])
    report(arguments.json, device, peaks, recipe, rows)


def report(wanted: bool, device: str, peaks: Peaks, recipe: Recipe, rows: dict[str, dict[str, Any]]) -> None:
    """Print missed targets and hours, and write the JSON."""
    print(f"\nTo be reached: {LEAST_SHARE:.0%} of the floor's rate by {' and '.join(SHARE_FAMILIES)},", end=" ")
    print(f"{MOST_WAIT:.0%} data wait at most")
    for name, row in rows.items():
        if missed := [what for what, reached in row["reached"].items() if not reached]:
            print(f"{name}: not reached: {', '.join(missed)}")
    for name, row in rows.items():
        print(f"{name}: weights of {REPEATED} trainings of {REPEATED_STEPS} steps differ by up to {row['apart']:.2g}")
    hours = gpu_hours(recipe, rows) if set(configurations(recipe)) <= set(rows) else None
    if hours:
        print(f"{recipe.name} over {VIDEOS:,} videos: {hours['training']:.1f} hours of training,", end=" ")
        print(f"and at most {hours['tagging']:.1f} of tagging")
    reach = {"share": LEAST_SHARE, "data_wait": MOST_WAIT}
    content = {"recipe": recipe.name, "peaks": vars(peaks), "reach": reach, "gpu_hours": hours, "rows": rows}
    print_json(wanted, "gpu", device=device, **content)


if __name__ == "__main__":
    main()
