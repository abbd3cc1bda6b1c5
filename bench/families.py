"""Videos a second of each family: training and tagging, on random clips of AudioSet's shape.

Every family has about the size that recipes/audioset-families.toml gives it. Trained models can be given instead, then
only tagging is timed:

    python bench/families.py runs/audioset-families/stages/average.*/model.reeltag runs/audioset-families/model.reeltag
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from measure import HERE, options, print_json, print_table, rates, run_rounds, timed
from reeltag.core.environment import default_device, keep_freed_memory
from reeltag.data.loader import Batch
from reeltag.data.schema import preset_schema
from reeltag.inference.ensemble import BATCH_SIZE, predict_batches
from reeltag.inference.predictor import load
from reeltag.models.tagger import Tagger, build_tagger
from reeltag.recipe.load import load_recipe
from reeltag.training.replica import Replica
from reeltag.training.schedule import TrainingSettings

RECIPE, BASE, VIDEOS = HERE.parent / "recipes" / "audioset-families.toml", "netvlad", 1024
SCHEMA = preset_schema("audioset")
Step = Callable[[], object]


def random_batch(size: int) -> Batch:
    """Clips of ten frames, as AudioSet's are."""
    frames = torch.randint(0, 256, (size, SCHEMA.max_frames, SCHEMA.width), dtype=torch.uint8)
    labels = torch.rand(size, SCHEMA.classes) < 0.005
    return Batch(("",) * size, frames, torch.full((size,), SCHEMA.max_frames), labels)


def training(tagger: Tagger, settings: TrainingSettings) -> Step:
    """A step of training."""
    return partial(Replica(tagger, settings).train_step, random_batch(settings.batch_size), seed=0)


def tagging(model: nn.Module) -> Step:
    """A batch of tagging."""
    device = torch.device(default_device())
    model, batch = model.to(device).eval(), random_batch(BATCH_SIZE).to(device)
    return lambda: list(predict_batches(model, [batch]))


def measure(title: str, steps: Mapping[str, tuple[Step, int]], rounds: int) -> dict[str, Any]:
    """Print and return what each does by the clock."""
    rows = {}
    for name, (step, size) in steps.items():
        times = VIDEOS // size
        rows[name] = partial(timed, partial(repeat, step, times), times * size)
    base = BASE if BASE in rows else next(iter(rows))
    found = rates(run_rounds(rows, rounds), base, "wall")
    print(f"{title}, {rounds} rounds, videos\n")
    print_table(found, base)
    return found


def repeat(step: Step, times: int) -> None:
    for _ in range(times):
        step()


def main() -> None:
    parser = options("Videos a second of each family, on random clips of AudioSet's shape.")
    parser.add_argument("files", nargs="*", type=Path, help="trained models")
    given = parser.parse_args()
    keep_freed_memory()
    models: dict[str, nn.Module] = {}
    results = {}
    for path in given.files:
        predictor = load(path, "exact")
        names = [member.name for member in predictor.artifact.members]
        models[names[0] if len(names) == 1 else path.stem] = predictor.model
    if not models:
        recipe = load_recipe(RECIPE)
        steps = {}
        for name, own in recipe.models.items():
            tagger, settings = (
                build_tagger(own.config, SCHEMA.widths, SCHEMA.classes, 0),
                recipe.training_with(own.training),
            )
            models[name], steps[name] = tagger, (training(tagger, settings), settings.batch_size)
        results["training"] = measure("Training", steps, given.rounds)
    steps = {name: (tagging(model), BATCH_SIZE) for name, model in models.items()}
    results["tagging"] = measure("Tagging", steps, given.rounds)
    print_json(given.json, "families", rounds=given.rounds, **results)


if __name__ == "__main__":
    main()
