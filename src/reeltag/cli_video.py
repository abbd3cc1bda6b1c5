"""The command `reeltag extract`."""

from __future__ import annotations

import sys
from pathlib import Path

from reeltag.cli_data import OneOrMore
from reeltag.cli_output import Json, say
from reeltag.cli_workers import Quiet
from reeltag.errors import UsageError


def extract(
    *videos: OneOrMore,
    out: Path,
    labels: Path | None = None,
    image: str = "efficientnet-lite0",
    audio: str = "logmel",
    pca: Path | None = None,
    fit_pca: str = "",
    test_share: float = 0.0,
    workers: int | None = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Turn video files into frame-level shards: one frame a second, its features in 8 bits, at most 300.

    Files that cannot be read are named and left out; the exit code is 0 as long as one was extracted. The same command
    goes on after an interruption. docs/videos.md tells what is in the folder.

    Example: reeltag extract videos/ --labels labels.csv --test-share 0.2 --out shards/

    Args:
        videos: Folders, files or glob patterns.
        out: A new folder for the shards, their manifest and a recipe.
        labels: A CSV file with the columns file and labels; several are separated by | or ;.
        image: What makes a picture's features: efficientnet-lite0, onnx:PATH, inception:PATH, or none.
        audio: What makes a second of sound's features: logmel, onnx:PATH, or none.
        pca: The PCA that features go through, as --fit-pca wrote it, or a folder with the published one.
        fit_pca: Learn a PCA from the training videos: its widths for pictures and sound, such as 256,64; 0 for none.
        test_share: Share of the videos that goes to test shards, chosen by a hash of their names.
        workers: Processes that share the files; by default one a processor, or fewer for fewer than 8 files each.
    """
    from reeltag.progress import default_progress
    from reeltag.storage import counted, few
    from reeltag.video.collect import Settings, collect, worthwhile_workers
    from reeltag.video.dataset import gather

    if not 0 <= test_share < 1:
        raise UsageError(f"--test-share: {test_share} is no share; give one from 0 to below 1")
    if workers is not None and workers < 1:
        raise UsageError("--workers: give 1 or more")
    if pca is not None and fit_pca:
        raise UsageError("--fit-pca: learns what --pca reads; leave one of the two out")
    settings = Settings(image, audio, pca, _widths(fit_pca, image, audio), test_share)
    data = gather(videos, labels)
    outcomes = collect(
        data, out, settings, workers or worthwhile_workers(len(data.items)), default_progress(quiet=quiet)
    )
    done = [outcome for outcome in outcomes if outcome.split]
    remarks = [f"  {outcome.id}: {'; '.join(outcome.remarks)}" for outcome in outcomes if outcome.remarks]
    tests = sum(outcome.split == "test" for outcome in done)
    seconds = sum(outcome.seconds for outcome in done)
    told = {"folder": out, "train_videos": len(done) - tests, "test_videos": tests, "seconds": seconds}
    told |= {"left_out": len(outcomes) - len(done), "report": out / "report.csv"}
    counts = [counted(len(done) - tests, "training video"), counted(tests, "test video"), counted(seconds, "second")]
    text = [f"{out}: {', '.join(counts)}"]
    if labels and tests:
        text.append(f"train on them: reeltag run {out / 'recipe.toml'} --set data.root={out}")
    say(told, text, json)
    if len(done) < len(outcomes):
        print(f"{counted(len(outcomes) - len(done), 'file')} left out; see {out / 'report.csv'}", file=sys.stderr)
    print("\n".join(few(remarks)), file=sys.stderr, end="\n" if remarks else "")


def _widths(text: str, image: str, audio: str) -> dict[str, int] | None:
    if not text:
        return None
    names = [feature for feature, extractor in (("rgb", image), ("audio", audio)) if extractor != "none"]
    parts = text.split(",")
    if len(parts) > len(names) or not all(part.strip().isdigit() for part in parts) or not any(map(int, parts)):
        raise UsageError(f"--fit-pca: {text!r} are no widths; give one for each of {', '.join(names)}, such as 256,64")
    return {name: int(part) for name, part in zip(names, parts, strict=False) if int(part)}
