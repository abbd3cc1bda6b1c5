"""Clocks that start anew, wrap or run backwards, and rates, against clips whose every second says its number."""

import numpy as np
import pytest

from clips import HEIGHT, WIDTH, number_of, numbered, tone, write_clip
from reeltag.data.video.decode import Damage, pictures, sound

SIZE = (HEIGHT, WIDTH)


def numbers(path, damage=None):
    return [number_of(picture) for picture in pictures(path, SIZE, damage or Damage())]


def pitches(path):
    """Return the pitch of each second of sound in hertz; 0 where it is silent."""
    heard = sound(path, 16000, Damage())
    seconds = heard[: len(heard) // 16000 * 16000].reshape(-1, 16000)[:, 3200:-3200]
    spectra = np.abs(np.fft.rfft(seconds))
    return [int(round(s.argmax() * 16000 / 9600, -1)) if s.max() > 50 else 0 for s in spectra]


def part(path, first, seconds, hertz, codec="libx264", **options):
    """Write a clip whose pictures show the number of their second from `first`, with a tone."""
    shown = [numbered(first + frame // 25) for frame in range(25 * seconds)]
    wave = tone(seconds, hertz, 48000)
    return write_clip(path, seconds, 25, pictures=shown, codec=codec, sound=wave, sound_rate=48000, **options)


def join(path, *parts):
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


@pytest.mark.parametrize(
    ("ending", "codec", "heard"),
    [
        ("ts", "libx264", "aac"),
        ("ts", "mpeg2video", "mp2"),
        ("mpg", "mpeg2video", "mp2"),
        ("flv", "libx264", "aac"),
        ("mkv", "libx264", "aac"),
        ("mkv", "mpeg4", "libmp3lame"),
    ],
)
def test_joined_files_go_on_at_the_end_of_what_came_before(tmp_path, ending, codec, heard):
    options = {"codec": codec, "sound_codec": heard}
    parts = [
        part(tmp_path / f"{first}.{ending}", first, seconds, hertz, **options)
        for first, seconds, hertz in ((1, 4, 500), (11, 3, 1500), (21, 5, 2500))
    ]
    joined, damage = join(tmp_path / f"joined.{ending}", *parts), Damage()
    assert numbers(joined, damage) == [1, 2, 3, 4, 11, 12, 13, 21, 22, 23, 24, 25]
    assert damage.restarts == 2
    assert pitches(joined)[:12] == [500] * 4 + [1500] * 3 + [2500] * 5
