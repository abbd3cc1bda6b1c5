"""Models that come with reeltag, by name. Their cards are in docs/pretrained.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from reeltag.core.errors import ArtifactError, UsageError
from reeltag.core.storage import file_hash
from reeltag.core.text import did_you_mean

FOLDER = Path(__file__).parent
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class ShippedModel:
    """Model that comes with reeltag.

    Attributes:
        sha256: of its file.
        about: purpose, on one line.
        test: metrics on the test set.
        licence: of the weights, an SPDX identifier.
        credits: data that it was trained on, with their licences.
        features: how to make features that it reads, one way a line.
        command: the command that made the file.
    """

    sha256: str
    about: str
    test: Mapping[str, float]
    licence: str
    credits: tuple[str, ...]
    features: tuple[str, ...]
    command: str


MODELS: Mapping[str, ShippedModel] = {
    "audioset-vggish": ShippedModel(
        sha256="1441ceb270f0749c30dae352312ad180c8889f83632d6d7fd073cf71a1533553",
        about="what is heard in a clip: AudioSet's 527 classes of sounds, speech and music",
        test={"gap": 0.43068, "map": 0.28727},
        licence="Apache-2.0",
        credits=(
            "features and labels: AudioSet (Google), CC BY 4.0",
            "classes: AudioSet's ontology (Google), CC BY-SA 4.0",
        ),
        features=(
            "sounds and videos: reeltag tag audioset-vggish clip.wav --audio vggish:PATH,vggish_pca_params.npz",
            "AudioSet's own features: reeltag predict audioset-vggish 'features/*.tfrecord'",
        ),
        command="reeltag run audioset-best --set budget_mb=3 --set training.precision=bf16-mixed",
    ),
}


def is_name(given: str | Path) -> bool:
    """Return True if a text is a name, and not the path of a file or folder that is there."""
    return isinstance(given, str) and _NAME.fullmatch(given) is not None and not Path(given).exists()


def path_of(name: str) -> Path:
    """Return the file of a model that comes with reeltag.

    Raises:
        ArtifactError: the file was changed.
        UsageError: no model has this name.
    """
    if name not in MODELS:
        hint = did_you_mean(name, MODELS) or f"there are {', '.join(MODELS)}."
        raise UsageError(f"no model named {name!r} comes with reeltag, and there is no such file here; {hint}")
    path = FOLDER / f"{name}.reeltag"
    if not path.is_file() or file_hash(path) != MODELS[name].sha256:
        raise ArtifactError(f"{path}: is not the file that came with reeltag; install reeltag again")
    return path


def name_of(path: Path) -> str | None:
    """Return the name of the model whose file this is; None if it did not come with reeltag."""
    return path.stem if path.parent == FOLDER and path.stem in MODELS else None
