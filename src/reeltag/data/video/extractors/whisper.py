"""Whisper's encoder: from 30 seconds of sound to 1500 states, averaged over each second."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from reeltag.core.errors import UsageError
from reeltag.data.pca import Values
from reeltag.data.video.decode import Samples
from reeltag.data.video.extractors.extractor import Extractor
from reeltag.data.video.extractors.onnx_graph import graph_hash, open_session, run_session
from reeltag.data.video.extractors.settings import FileSettings, check_reference, parse_settings, probe_width, tone

RATE = 16000  # samples a second
SECONDS = 30  # of a window
WINDOWS, STATES = 3000, 1500  # of the spectrum and of the output, in 30 seconds
GRAPHS = ("encoder_model.onnx", "onnx/encoder_model.onnx")  # in a folder that Optimum exported


class WhisperSettings(FileSettings):
    """Keys of Whisper's encoder."""

    bands: int | None = Field(
        None, ge=1, le=512, description="mel bands, 80 or 128, for graphs whose number of bands is dynamic"
    )


def open_whisper(rest: str) -> Extractor[Samples]:
    """Open Whisper's encoder, as Optimum exports it to ONNX.

    Args:
        rest: PATH?key=value&…, the graph or the folder of the export, with the keys of `WhisperSettings`.

    Raises:
        UsageError: the file is missing, or is not Whisper's encoder.
    """
    given, settings = parse_settings("whisper", rest, WhisperSettings)
    path = next((given / name for name in GRAPHS if (given / name).exists()), given)
    if path.is_dir():
        raise UsageError(f"{path}: holds no {GRAPHS[0]}; give the encoder's graph, or the folder of its export")
    encoder = WhisperEncoder(path, settings.bands)
    check_reference(path, settings.reference, encoder, "that it is the same network")
    kept = settings.identity() | {"bands": encoder.bands}
    identity = {"name": "whisper", "weights": graph_hash(path), "settings": kept}
    name, scale = f"whisper:{given.name}", (settings.offset, settings.scale)
    return Extractor(name, encoder.width, (RATE,), identity, *scale, encoder, batch=SECONDS)


class WhisperEncoder:
    """Network from seconds of sound [T, 16000] to the means of their states, [T, width] float32.

    It reads windows of 30 seconds, one after the other; the last is filled up with silence.

    Args:
        path: ONNX graph from [N, bands, 3000] to [N, 1500, width].
        bands: number of mel bands, where the graph leaves it open.

    Raises:
        UsageError: the file cannot be opened, or has another input or output.
    """

    def __init__(self, path: Path, bands: int | None) -> None:
        self._path, self._session = path, open_session(path)
        kinds = [(each.type, each.shape) for each in self._session.get_inputs()]
        shape = kinds[0][1]
        if len(kinds) != 1 or kinds[0][0] != "tensor(float)" or len(shape) != 3 or not _fits(shape[2], WINDOWS):
            what = f"reads {', '.join(f'{kind} {sides}' for kind, sides in kinds)}"
            raise UsageError(f"{path}: {what}, not float [N, bands, {WINDOWS}] as Whisper's encoder")
        if bands is None and not isinstance(shape[1], int):
            raise UsageError(f"{path}: reads {shape}; give the number of its mel bands, ?bands=80 or ?bands=128")
        if bands is not None and not _fits(shape[1], bands):
            raise UsageError(f"{path}: reads {shape[1]} mel bands, and ?bands={bands} was given; leave it out")
        self.bands: int = bands or shape[1]
        names = [each.name for each in self._session.get_outputs()]
        self._output = "last_hidden_state" if "last_hidden_state" in names else names[0]
        self.width = probe_width(path, self, tone(RATE), "a tone")

    def __call__(self, seconds: Samples) -> Values:
        """Return the means [T, width] of the states of seconds of sound [T, 16000]."""
        return np.concatenate([self._window(seconds[i : i + SECONDS]) for i in range(0, len(seconds), SECONDS)])

    def _window(self, seconds: Samples) -> Values:
        samples = np.zeros((SECONDS, RATE), np.float32)
        samples[: len(seconds)] = seconds
        spectrum = log_mel(torch.from_numpy(samples.reshape(-1)), self.bands).numpy()
        (name,) = (each.name for each in self._session.get_inputs())
        (states,) = run_session(self._path, self._session, {name: spectrum[None]}, [self._output])
        if states.ndim != 3 or states.shape[:2] != (1, STATES):
            what = f"output {self._output!r} is {list(states.shape)}"
            raise UsageError(f"{self._path}: {what}, not the {STATES} states [1, {STATES}, width] of Whisper's encoder")
        means: Values = states.reshape(SECONDS, STATES // SECONDS, -1).mean(1, dtype=np.float32)
        return means[: len(seconds)]


def _fits(side: int | str | None, wanted: int) -> bool:
    """Return True if a dimension of a graph is of a size, or dynamic."""
    return side == wanted or not isinstance(side, int)


def log_mel(samples: Tensor, bands: int) -> Tensor:
    """Return the log-mel spectrogram that Whisper reads.

    Hann windows of 25 ms are centred at every 10 ms; at both ends the samples are reflected. Energies in mel bands of 0
    to 8000 Hz become (max(log10 x, its largest - 8) + 4) / 4, so silence depends on the loudest sound of the window.

    Args:
        samples: [480000] in [-1, 1], 30 seconds.
        bands: number of mel bands.

    Returns:
        [bands, 3000] float32.
    """
    spectrum = torch.stft(samples, 400, 160, window=torch.hann_window(400), return_complex=True)[:, :-1]
    logs = (_mel_bands(bands) @ spectrum.abs().square()).clamp_min(1e-10).log10()
    return (logs.clamp_min(logs.max() - 8) + 4) / 4


@lru_cache
def _mel_bands(bands: int) -> Tensor:
    """Return the weights of the spectrum's energies in each band of Slaney's mel scale, [bands, 201].

    The scale is linear up to 1000 Hz, and logarithmic above. Bands are triangles of one area, whose feet are the peaks
    of their neighbours.
    """
    mels = torch.linspace(0, 15 + 27 * np.log(8) / np.log(6.4), bands + 2, dtype=torch.float64)
    edges = torch.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))[:, None]  # in Hz
    frequencies = torch.arange(201, dtype=torch.float64) * RATE / 400
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return (torch.minimum(rising, falling).clamp_min(0) * 2 / (edges[2:] - edges[:-2])).float()
