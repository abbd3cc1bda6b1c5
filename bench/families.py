"""Videos a second of each family: training and tagging, on random clips of AudioSet's shape.

Every family has about the size that recipes/audioset.toml gives it. Rounds take turns, so that a slow
minute of the machine hits all alike; ratios are to NetVLAD in the same round. Models that one trained can be
given instead, then only tagging is timed:

    python bench/families.py runs/audioset/stages/*/model.reeltag
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from lightning_fabric import Fabric

from reeltag import artifact
from reeltag.data.batches import Batch
from reeltag.data.schema import preset
from reeltag.environment import default_device
from reeltag.models.tagger import Tagger, build_tagger
from reeltag.recipe import load_recipe
from reeltag.train import TrainingSettings, train_step

RECIPE = Path(__file__).parent.parent / "recipes" / "audioset.toml"
ROUNDS, SECONDS = 7, 1.0
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


def tagging(tagger: Tagger) -> Callable[[], int]:
    """A batch of tagging, and how many videos it has."""
    device = default_device()
    tagger = tagger.to(device).eval()
    batch = random_batch(64).to(torch.device(device))

    @torch.inference_mode()
    def step() -> int:
        tagger(batch.frames, batch.lengths).cpu()
        return len(batch)

    return step


def rate(step: Callable[[], int]) -> float:
    """Videos a second."""
    begin, videos = time.perf_counter(), 0
    while time.perf_counter() - begin < SECONDS:
        videos += step()
    return videos / (time.perf_counter() - begin)


def measure(steps: dict[str, Callable[[], int]]) -> None:
    """Print the median rate of each, and the median of its ratios to the first."""
    for step in steps.values():
        step()
    rounds = [{name: rate(step) for name, step in steps.items()} for _ in range(ROUNDS)]
    first = next(iter(steps))
    for name in steps:
        ratio = median(found[name] / found[first] for found in rounds)
        print(f"| {name} | {median(found[name] for found in rounds):,.0f} | {ratio:.2f} |")


def main() -> None:
    """Print the tables."""
    taggers = {}
    if len(sys.argv) > 1:
        for path in sys.argv[1:]:
            shipped = artifact.load(Path(path))
            taggers |= {member.name: member.build(shipped.schema) for member in shipped.members}
    else:
        recipe = load_recipe(RECIPE)
        configs = {name: recipe.models[name].config for name in recipe.models}
        taggers = {name: build_tagger(config, SCHEMA.widths, SCHEMA.classes, 0) for name, config in configs.items()}
        print("| training | videos/s | to the first |\n|---|---|---|")
        measure({name: training(tagger, recipe.training_of(name)) for name, tagger in taggers.items()})
    print("\n| tagging | videos/s | to the first |\n|---|---|---|")
    measure({name: tagging(tagger) for name, tagger in taggers.items()})


if __name__ == "__main__":
    main()
