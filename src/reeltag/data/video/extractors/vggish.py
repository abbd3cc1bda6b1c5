"""VGGish, whose features AudioSet and YouTube-8M have: from a second of sound to 128 values, through its published PCA.

Its post-processing is that of `vggish_postprocess.py` in TensorFlow's models: a PCA with whitening, then [-2, 2] in 8
bits, truncated. `data.pca.to_codes` does the same with the values of the PCA, so on the scale 1 the codes of a record
are Google's.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from reeltag.core.errors import UsageError
from reeltag.core.storage import file_hash, require_regular
from reeltag.data.pca import Values
from reeltag.data.video.decode import Samples
from reeltag.data.video.extractors import mel
from reeltag.data.video.extractors.extractor import Extractor
from reeltag.data.video.extractors.onnx_graph import graph_hash
from reeltag.data.video.extractors.settings import FileSettings, check_reference, parse_settings
from reeltag.data.video.extractors.sound_network import SoundNetwork

WIDTH = 128


def open_vggish(rest: str) -> Extractor[Samples]:
    """Open VGGish.

    Args:
        rest: PATH,PCA?key=value&…, the network as ONNX or TFLite, and `vggish_pca_params.npz`.

    Raises:
        UsageError: a file is missing, or is not that of VGGish.
    """
    paths, settings = parse_settings("vggish", rest, FileSettings)
    path, pca = _two_paths(paths)
    network, components, mean = SoundNetwork(path, WIDTH, mel.vggish_patches), *_read_pca(pca)

    def values(seconds: Samples) -> Values:
        # In float64, as published.
        projected: Values = ((torch.from_numpy(network(seconds)).double() - mean) @ components.T).float().numpy()
        return projected

    check_reference(path, settings.reference, values, "that it is the same network, and its PCA")
    weights = {"weights": graph_hash(path), "pca": file_hash(pca)}
    identity = {"name": "vggish", **weights, "settings": settings.identity()}
    name = f"vggish:{path.name},{pca.name}"
    offset, scale = settings.offset, settings.scale
    published = (offset, scale) == (0, 1)
    return Extractor(name, WIDTH, (mel.RATE,), identity, offset, scale, values, published=published)


def _two_paths(paths: Path) -> tuple[Path, Path]:
    path, _, pca = str(paths).rpartition(",")
    if not path or not pca:
        what = f"{paths}: names one file; give the network and its PCA"
        raise UsageError(f"vggish: {what}, vggish:PATH,vggish_pca_params.npz")
    return Path(path), Path(pca)


def _read_pca(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Read the components [128, 128], one a row, and the mean [128] of the published PCA, in float64."""
    try:
        with np.load(require_regular(path), allow_pickle=False) as file:
            arrays = [file[name].astype(np.float64) for name in ("pca_eigen_vectors", "pca_means")]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path}: is no vggish_pca_params.npz ({error})") from error
    components, mean = arrays[0], arrays[1].reshape(-1)
    if components.shape != (WIDTH, WIDTH) or mean.shape != (WIDTH,) or not np.isfinite(arrays[0]).all():
        raise UsageError(f"{path}: has components {list(components.shape)} and mean {list(mean.shape)}, not [128, 128]")
    return torch.from_numpy(components), torch.from_numpy(mean)
