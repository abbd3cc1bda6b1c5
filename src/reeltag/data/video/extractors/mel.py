"""Log-mel spectrograms of sound, second by second; computed in torch, whose single thread adds in a fixed order.

The mel scale is HTK's, 1127 · ln(1 + f / 700). Each band is a triangular filter between the peaks of its neighbours.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

RATE = 16000  # samples a second
BANDS = 128
FLOOR = 1e-6  # energies below it count as silence
WINDOW, HOP, FFT = 1024, 160, 2048


def log_mel(seconds: Tensor) -> Tensor:
    """Return the log energies in 128 mel bands, averaged over each second.

    Hann windows of 64 ms, every 10 ms, lie within one second. The spectrum is divided by the window's sum, and a band's
    energy is the weighted sum of its squares, so that a full-scale sine has an energy of about 0.25.

    Args:
        seconds: [T, 16000] samples in [-1, 1].

    Returns:
        [T, 128] float32, in about [-14, 0].
    """
    spectrum = _spectrum(seconds, WINDOW, HOP, FFT) / _hann(WINDOW).sum()
    energies = spectrum.square() @ _mel_bands(BANDS, FFT, 60.0, 7600.0).float()
    return (energies + FLOOR).log().mean(1)


def vggish_patches(seconds: Tensor) -> Tensor:
    """Return the log-mel patches that VGGish reads: those of `_patches` with the logarithm of x + 0.01.

    Args:
        seconds: [T, at least 15600] samples in [-1, 1], 16,000 a second.

    Returns:
        [T, 96, 64] float32, of the first 0.975 of each second.
    """
    return _patches(seconds, 0.01)


def yamnet_patches(seconds: Tensor) -> Tensor:
    """Return the log-mel patches that YAMNet reads: those of `_patches` with the logarithm of x + 0.001.

    Args:
        seconds: [T, at least 15600] samples in [-1, 1], 16,000 a second.

    Returns:
        [T, 96, 64] float32, of the first 0.975 of each second.
    """
    return _patches(seconds, 0.001)


def _patches(seconds: Tensor, offset: float) -> Tensor:
    """Return Google's log-mel patches: 96 Hann windows of 25 ms, every 10 ms, in 64 bands of 125 to 7500 Hz.

    A value is log(x + offset), where x sums the magnitudes of a band, not its energies. In float32 the rounding of a
    loud tone's spectrum would show in the silent bands.
    """
    magnitudes = _spectrum(seconds.double(), 400, HOP, 512)[:, :96]
    return (magnitudes @ _mel_bands(64, 512, 125.0, 7500.0) + offset).log().float()


def _spectrum(seconds: Tensor, window: int, hop: int, fft: int) -> Tensor:
    """Return magnitudes of the spectrum, [T, windows, fft / 2 + 1], in the precision of the samples."""
    windows: Tensor = seconds.unfold(1, window, hop) * _hann(window).to(seconds.dtype)
    magnitudes: Tensor = torch.fft.rfft(windows, fft).abs()
    return magnitudes


@lru_cache
def _hann(window: int) -> Tensor:
    return torch.hann_window(window, periodic=True, dtype=torch.float64)


@lru_cache
def _mel_bands(bands: int, fft: int, lowest: float, highest: float) -> Tensor:
    """Return the weights of the spectrum in each band, [fft / 2 + 1, bands] float64."""
    mels = 1127 * (1 + torch.arange(fft // 2 + 1, dtype=torch.float64) * RATE / fft / 700).log()[:, None]
    low, high = (1127 * math.log(1 + hertz / 700) for hertz in (lowest, highest))
    edges = torch.linspace(low, high, bands + 2, dtype=torch.float64)
    rising = (mels - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - mels) / (edges[2:] - edges[1:-1])
    weights = torch.minimum(rising, falling).clamp_min(0)
    weights[0] = 0  # a constant offset of the samples is not sound
    return weights
