"""Write six clips of sun and rain, their labels, and a seventh to be tagged.

Usage: python examples/own-videos/make_videos.py FOLDER
"""

import csv
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT, RATE, SECONDS = 160, 120, 5, 10
SAMPLES = 16000  # a second
# Every clip says what is in which of its halves.
CLIPS = {
    "beach.mp4": ("sun", "sun"),
    "garden.mp4": ("sun", "sun"),
    "meadow.mp4": ("sun", "sun"),
    "harbour.mp4": ("rain", "rain"),
    "street.mp4": ("rain", "rain"),
    "window.mp4": ("rain", "rain"),
}
NEW = ("sun", "rain")


def picture(what: str, random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """A yellow disc in a blue sky, or drops before a grey one."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    if what == "sun":
        sky = np.full((HEIGHT, WIDTH, 3), (90, 160, 240))
        cx, cy, radius = random.uniform(40, 120), random.uniform(30, 60), random.uniform(15, 25)
        sky[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = (250, 220, 60)
    else:
        sky = np.full((HEIGHT, WIDTH, 3), (90, 95, 105))
        for _ in range(60):
            column, top = random.integers(0, WIDTH), random.integers(0, HEIGHT - 12)
            sky[top : top + 12, column] = (190, 200, 220)
    return (sky + random.integers(-8, 8, sky.shape)).clip(0, 255).astype(np.uint8)


def sound(what: str, random: np.random.Generator) -> npt.NDArray[np.float32]:
    """A second of birds, which are a trembling tone, or of rain, which is noise."""
    at = np.arange(SAMPLES) / SAMPLES
    birds = np.sin(2 * np.pi * 2500 * at + 30 * np.sin(2 * np.pi * 8 * at)) * random.uniform(0.1, 0.3)
    rain = random.normal(0, random.uniform(0.05, 0.15), SAMPLES)
    return (birds if what == "sun" else rain).astype(np.float32)


def write(path: Path, halves: tuple[str, str], seed: int) -> None:
    """Write a clip with pictures and sound."""
    random = np.random.default_rng(seed)
    seconds = [halves[2 * second // SECONDS] for second in range(SECONDS)]
    with av.open(str(path), "w") as container:
        seen = container.add_stream("libx264", rate=RATE)
        seen.width, seen.height, seen.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        heard = container.add_stream("aac", rate=SAMPLES, layout="mono")
        for what in seconds:
            for _ in range(RATE):
                container.mux(seen.encode(av.VideoFrame.from_ndarray(picture(what, random), format="rgb24")))
        container.mux(seen.encode(None))
        samples = np.concatenate([sound(what, random) for what in seconds])
        frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLES, 0, Fraction(1, SAMPLES)
        container.mux(heard.encode(frame))
        container.mux(heard.encode(None))


def rows() -> Iterator[tuple[str, str]]:
    """Lines of labels.csv."""
    yield "file", "labels"
    for name, halves in CLIPS.items():
        yield name, "|".join(dict.fromkeys(halves))


def main(folder: Path) -> None:
    """Write everything into a folder."""
    folder.mkdir()
    for seed, (name, halves) in enumerate(CLIPS.items()):
        write(folder / name, halves, seed)
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows())
    write(folder.with_name("new.mp4"), NEW, len(CLIPS))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
