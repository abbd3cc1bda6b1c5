"""Videos a second of each family: training and tagging, on random clips of AudioSet's shape.

Every family has about the size that recipes/audioset-families.toml gives it. Rounds take turns, so that a slow
minute of the machine hits all alike; ratios are to NetVLAD in the same round. Trained models can be given
instead, then only tagging is timed:

    python bench/families.py runs/audioset-families/stages/average.*/model.reeltag runs/audioset-families/model.reeltag
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from lightning_fabric import Fabric
from torch import nn

from reeltag import predict as prediction
from reeltag.data.batches import Batch
from reeltag.data.schema import preset
from reeltag.environment import default_device
from reeltag.models.tagger import Tagger, build_tagger
from reeltag.recipe_file import load_recipe
from reeltag.train import TrainingSettings, train_step

RECIPE = Path(__file__).parent.parent / "recipes" / "audioset-families.toml"
ROUNDS, SECONDS, BASE = 7, 1.0, "netvlad"
SCHEMA = preset("audioset")


def random_batch(size: int) -> Batch:
    """Clips of ten frames, as AudioSet's are."""
    frames = torch.randint(0, 256, (size, SCHEMA.max_frames, SCHEMA.width), dtype=torch.uint8)
    labels = torch.rand(size, SCHEMA.classes) < 0.005
    return Batch(("",) * size, frames, torch.full((size,), SCHEMA.max_frames), labels)


def training(tagger: Tagger, settings: TrainingSettings) -> Callable[[], int]:
    """A step of training, and how many videos it sees."""
    fabric = Fabric(accelerator=settings.device, devices=1)
    optimizer = torch.optim.Adam(tagger.parameters(), fused=True)
    model, wrapped = fabric.setup(tagger.train(), optimizer)
    batch = random_batch(settings.batch_size)

    def step() -> int:
        train_step(fabric, model, wrapped, batch, settings, seed=0)
        return len(batch)

    return step


def tagging(model: nn.Module) -> Callable[[], int]:
    """A batch of tagging, and how many videos it has."""
    device = default_device()
    model = model.to(device).eval()
    batch = random_batch(64).to(torch.device(device))

    @torch.inference_mode()
    def step() -> int:
        model(batch.frames, batch.lengths).cpu()
        return len(batch)

    return step


def rate(step: Callable[[], int]) -> float:
    """Videos a second."""
    begin, videos = time.perf_counter(), 0
    while time.perf_counter() - begin < SECONDS:
        videos += step()
    return videos / (time.perf_counter() - begin)


def measure(steps: dict[str, Callable[[], int]]) -> None:
    """Print the median rate of each, and the median of its ratios to NetVLAD, or else to the first."""
    for step in steps.values():
        step()
    rounds = [{name: rate(step) for name, step in steps.items()} for _ in range(ROUNDS)]
    first = BASE if BASE in steps else next(iter(steps))
    for name in steps:
        ratio = median(found[name] / found[first] for found in rounds)
        print(f"| {name} | {median(found[name] for found in rounds):,.0f} | {ratio:.2f} |")


def main() -> None:
    """Print the tables."""
    models: dict[str, nn.Module] = {}
    for path in map(Path, sys.argv[1:]):
        predictor = prediction.load(path)
        names = [member.name for member in predictor.artifact.members]
        models[names[0] if len(names) == 1 else path.stem] = predictor.model
    if not models:
        recipe = load_recipe(RECIPE)
        taggers = {
            name: build_tagger(settings.config, SCHEMA.widths, SCHEMA.classes, 0)
            for name, settings in recipe.models.items()
        }
        print("| training | videos/s | ratio |\n|---|---|---|")
        measure({name: training(tagger, recipe.training_of(name)) for name, tagger in taggers.items()})
        models = dict(taggers)
    print("\n| tagging | videos/s | ratio |\n|---|---|---|")
    measure({name: tagging(model) for name, model in models.items()})


if __name__ == "__main__":
    main()
