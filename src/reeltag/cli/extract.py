"""The command `reeltag extract`."""

from __future__ import annotations

import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Literal

from reeltag.cli.options import OneOrMore, Quiet
from reeltag.cli.output import Json, say
from reeltag.core.errors import UsageError

if TYPE_CHECKING:
    from reeltag.data.video.dataset import Dataset
    from reeltag.data.video.extract import Extracted, Settings


def extract(
    *videos: OneOrMore,
    out: Path,
    labels: Path | None = None,
    image: str = "efficientnet-lite0",
    audio: str = "logmel",
    pca: Path | None = None,
    fit_pca: str = "",
    fit_scale: int | None = None,
    storage: Literal["uint8", "float16", "float32"] = "uint8",
    allow_clipping: bool = False,
    test_share: float | None = None,
    workers: int | None = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Extract features of video files into frame-level shards: one frame per second, at most 300.

    Unreadable files are reported and skipped; the exit code is 0 if at least one file was extracted. The same command
    resumes after an interruption. docs/videos.md describes the output folder.

    Example: reeltag extract videos/ --labels labels.csv --out shards/

    Args:
        videos: Folders, files or glob patterns.
        out: A new folder for the shards, their manifest and a recipe.
        labels: A CSV file with the columns file and labels; several labels are separated by | or ;.
        image: Encoder of pictures: efficientnet-lite0, clip:PATH, siglip:PATH, dinov2:PATH, timm:NAME, inception:PATH,
            onnx:PATH, tflite:PATH, or none; see docs/encoders.md.
        audio: Encoder of sound: logmel, yamnet:PATH, vggish:PATH,PCA, whisper:PATH, onnx:PATH, or none.
        pca: PCA to apply to the features: a file that --fit-pca wrote, or a folder with the published one.
        fit_pca: Fit a PCA on the training videos, with these widths for image and audio, such as 256,64; 0 for
            none.
        fit_scale: Measure the offset and scale of the 8-bit codes of each feature from so many training videos.
        storage: Form of the values in the shards: uint8 codes of values in [-2, 2], or the extractor's floats.
        allow_clipping: Extract also where more than a fifth of a feature's values are outside the 8-bit range.
        test_share: Fraction of the videos for test shards, selected by a hash of their names; by default 0.2 with
            labels and 0 without.
        workers: Number of files at once, each decoded in a process of its own; by default one per CPU.
    """
    from reeltag.core.progress import default_progress
    from reeltag.data.video.dataset import find_videos
    from reeltag.data.video.engine import suggested_workers
    from reeltag.data.video.extract import Settings, extract_dataset

    if test_share is None:
        test_share = 0.2 if labels else 0.0
    if not 0 <= test_share < 1:
        raise UsageError(f"--test-share: {test_share} is not a valid fraction; give one from 0 to below 1")
    if workers is not None and workers < 1:
        raise UsageError("--workers: give 1 or more")
    if pca is not None and fit_pca:
        raise UsageError("--fit-pca fits the PCA that --pca reads; give one of the two")
    if fit_scale is not None and fit_scale < 1:
        raise UsageError("--fit-scale: give a number of videos, 1 or more")
    if fit_scale and (pca is not None or fit_pca):
        raise UsageError("--fit-scale: a PCA brings values to a scale of its own; give one of the two")
    if storage != "uint8" and (fit_scale or allow_clipping):
        option = "--fit-scale" if fit_scale else "--allow-clipping"
        raise UsageError(f"{option}: {storage} is stored as it is; leave out {option}, or --storage")
    settings = Settings(
        image, audio, pca, _widths(fit_pca, image, audio), test_share, fit_scale, storage, allow_clipping
    )
    data = find_videos(videos, labels, fewest=2 if test_share else 1)
    extracted = extract_dataset(
        data, out, settings, workers or suggested_workers(len(data.items)), default_progress(quiet=quiet)
    )
    _report(data, extracted, settings, out, json)


def _report(data: Dataset, extracted: Extracted, settings: Settings, out: Path, json: bool) -> None:
    """Print how many files were extracted, which were left out, and the next step."""
    from reeltag.core.text import counted, first_lines, one_line
    from reeltag.data.video.dataset import classes_without_training_videos

    outcomes = extracted.outcomes
    train, test = ([each for each in outcomes if each.split == split] for split in ("train", "test"))
    seconds, left_out = sum(each.seconds for each in train + test), len(outcomes) - len(train + test)
    untaught = classes_without_training_videos(data, {each.id for each in train})
    result = {"folder": out, "train_videos": len(train), "test_videos": len(test), "seconds": seconds}
    result |= {"left_out": left_out, "untaught": untaught, "report": out / "report.csv"}
    result |= {"scales": dict(extracted.scales), "warnings": [*extracted.warnings, *data.remarks]}
    counts = [counted(len(train), "training video"), counted(len(test), "test video"), counted(seconds, "second")]
    text = [f"{out}: {', '.join(counts)}"]
    if data.classes is not None:
        first = "" if test else f"set data.test in {out / 'recipe.toml'}, then "
        text.append(f"{first}train: reeltag run {quote(str(out / 'recipe.toml'))}")
    for feature, scale in extracted.scales.items():
        text.append(f"scale of {feature} measured; for more videos: {settings.option(feature, *scale)}")
    say(result, text, json)
    notes = [f"no training video has the label {one_line(name)}, so it cannot be learned" for name in untaught]
    notes = [*extracted.warnings, *data.remarks, *first_lines(notes)]
    if left_out:
        notes.append(f"{counted(left_out, 'file')} left out; see {out / 'report.csv'}")
        notes += first_lines([f"  {each.id}: {'; '.join(each.remarks)}" for each in outcomes if each.split is None])
    if remarked := [f"  {each.id}: {'; '.join(each.remarks)}" for each in train + test if each.remarks]:
        notes += [f"{counted(len(remarked), 'file')} with remarks; see {out / 'report.csv'}", *first_lines(remarked)]
    if notes:
        print("\n".join(notes), file=sys.stderr)


def _widths(text: str, image: str, audio: str) -> dict[str, int] | None:
    """Parse --fit-pca into the width of the PCA per feature; None if it was not given."""
    if not text:
        return None
    names = [feature for feature, extractor in (("rgb", image), ("audio", audio)) if extractor != "none"]
    parts = text.split(",")
    if len(parts) > len(names) or not all(part.strip().isdigit() for part in parts) or not any(map(int, parts)):
        raise UsageError(
            f"--fit-pca: {text!r} is not a list of widths; give one for each of {', '.join(names)}, such as 256,64"
        )
    return {name: int(part) for name, part in zip(names, parts, strict=False) if int(part)}
