"""Values of an extractor → 8 bits, through a PCA with whitening or a fixed scale.

The codes are YouTube-8M's: values are clipped to [-2, 2], and code q stands for [4q/255 - 2, 4(q + 1)/255 - 2), whose
middle `models.layers.dequantize` gives back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from reeltag.core import tensorfile
from reeltag.core.errors import UsageError
from reeltag.core.storage import content_hash

Values = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]

LIMIT = 2.0  # of a value, as YouTube-8M has it
EPSILON = 1e-4  # of the mean variance, added to each before it divides
ARRAYS = ("mean", "components", "scale")  # of a projection
_WANTED = "the pca.safetensors that `reeltag extract --fit-pca` wrote"


def to_codes(values: Values) -> Codes:
    """Clip values to [-2, 2] and round them down to codes."""
    codes: Codes = np.floor((values.clip(-LIMIT, LIMIT) + LIMIT) * np.float32(255 / 4)).astype(np.uint8)
    return codes


@dataclass(frozen=True)
class Projection:
    """A PCA with whitening: y = ((x - mean) · components) · scale.

    Attributes:
        mean: [D] float32.
        components: [D, W] float32, orthonormal columns, the greatest variance first.
        scale: [W] float32, one over the standard deviation along each.
    """

    mean: Values
    components: Values
    scale: Values

    @property
    def widths(self) -> tuple[int, int]:
        """D and W."""
        return self.components.shape[0], self.components.shape[1]

    @property
    def bytes(self) -> int:
        """Of the three arrays."""
        return sum(getattr(self, name).nbytes for name in ARRAYS)

    @property
    def hash(self) -> str:
        """SHA-256 of the three arrays."""
        return content_hash({name: getattr(self, name).tobytes().hex() for name in ARRAYS})

    def __call__(self, values: Values) -> Values:
        """Project values.

        Args:
            values: [T, D].

        Returns:
            [T, W].
        """
        # torch, whose one thread adds in one order.
        projected: Values = (torch.from_numpy(values - self.mean) @ torch.from_numpy(self.components)).numpy()
        return projected * self.scale


class Moments:
    """Sums of which a PCA is made, in float64 and in the order in which videos are added.

    Args:
        width: D of the values.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self._origin: torch.Tensor | None = None  # near the mean, so that squares lose nothing
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._squares = torch.zeros(width, width, dtype=torch.float64)

    def add(self, values: Values) -> None:
        """Take the frames of a video, [T, D], into account."""
        x_TD = torch.from_numpy(values).double()
        if self._origin is None:
            self._origin = x_TD.mean(0)
        x_TD = x_TD - self._origin
        self.count += len(x_TD)
        self._sum += x_TD.sum(0)
        self._squares += x_TD.T @ x_TD

    def projection(self, width: int) -> Projection:
        """Compute the PCA of all frames; each component's sign makes its largest entry positive.

        Args:
            width: W, how many components are kept.

        Raises:
            UsageError: the frames do not vary in so many directions.
        """
        most = min(len(self._sum), self.count - 1)
        if width > most or self._origin is None:
            what = f"{self.count:,} frames of {len(self._sum):,} values allow at most {max(most, 0):,}"
            raise UsageError(f"--fit-pca: {width:,} components cannot be learned; {what}; give more videos, or fewer")
        mean = self._sum / self.count
        covariance = self._squares / self.count - torch.outer(mean, mean)
        variances, vectors = torch.linalg.eigh(covariance)
        variances, vectors = variances.flip(0)[:width].clamp_min(0), vectors.flip(1)[:, :width]
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        vectors = vectors * torch.where(largest < 0, -1.0, 1.0)
        scale = (variances + EPSILON * covariance.diagonal().mean()).rsqrt()
        if not scale.isfinite().all():
            raise UsageError("--fit-pca: all frames are the same; give other videos")
        arrays = (array.float().contiguous().numpy() for array in (mean + self._origin, vectors, scale))
        return Projection(*arrays)


def save_projections(path: Path, projections: Mapping[str, Projection], extractors: Mapping[str, Any]) -> None:
    """Write projections by feature, with what made the values that they are for (JSON)."""
    arrays = {
        f"{feature}.{name}": getattr(projection, name) for feature, projection in projections.items() for name in ARRAYS
    }
    tensorfile.write(path, arrays, {"projections": dict(extractors)})


def load_projections(path: Path, extractors: Mapping[str, Any]) -> dict[str, Projection]:
    """Read a file that `save_projections` wrote, or a folder with YouTube-8M's published PCA, which is that of `rgb`.

    Args:
        path: the file or folder.
        extractors: by feature, what makes the values that are to be projected.

    Raises:
        ArtifactError: the file is missing or damaged.
        UsageError: it holds no projection, or one for the values of another extractor.
    """
    if path.is_dir():
        return {"rgb": _published(path)}
    projections, made_for = read_projections(path)
    for feature, extractor in made_for.items():
        if extractors.get(feature) != extractor:
            what = (
                f"its PCA of {feature!r} is for the values of {extractor.get('name')!r} with other weights or settings"
            )
            raise UsageError(f"{path}: {what}; give the extractor that it was learned with, or --fit-pca")
    return projections


def read_projections(path: Path) -> tuple[dict[str, Projection], dict[str, Any]]:
    """Read what `save_projections` wrote: projections by feature, and the extractors of their inputs.

    Raises:
        ArtifactError: the file is missing or damaged.
        UsageError: it holds no projection.
    """
    file = tensorfile.TensorFile(path, _WANTED)
    made_for = file.content.get("projections")
    if not isinstance(made_for, dict) or {*file.names} != {f"{key}.{name}" for key in made_for for name in ARRAYS}:
        raise UsageError(f"{path}: holds no PCA; give {_WANTED}")
    found = {feature: Projection(*(file.read(f"{feature}.{name}") for name in ARRAYS)) for feature in made_for}
    return found, made_for


def _published(folder: Path) -> Projection:
    """YouTube-8M's own: `mean.npy`, `eigenvals.npy` and `eigenvecs.npy`, as its feature extractor applies them."""
    width = 1024
    try:
        mean, variances, vectors = (
            np.load(folder / f"{name}.npy", allow_pickle=False).astype(np.float64)
            for name in ("mean", "eigenvals", "eigenvecs")
        )
    except (OSError, ValueError) as error:
        what = "holds no published PCA: mean.npy, eigenvals.npy and eigenvecs.npy"
        raise UsageError(f"{folder}: {what} ({error})") from error
    arrays = (mean.ravel(), vectors.T[:, :width], 1 / np.sqrt(variances.ravel()[:width] + 1e-4))
    return Projection(*(np.ascontiguousarray(array, np.float32) for array in arrays))
