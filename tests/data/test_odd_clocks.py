"""Clocks that start anew, wrap or run backwards, and rates, against clips whose every second says its number."""

import numpy as np
import pytest

from clips import BELOW_ZERO, HEIGHT, WIDTH, number_of, numbered, tone, write_clip
from reeltag.data.video.decode import Damage, pictures, sound

SIZE = (HEIGHT, WIDTH)
WRAP = 2**33 / 90000  # seconds that MPEG's clock counts


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


def numbers(path, damage=None):
    return [number_of(picture) for picture in pictures(path, SIZE, damage or Damage())]


def pitches(path):
    """Return the pitch of each second of sound in hertz; 0 where it is silent."""
    heard = sound(path, 16000, Damage())
    heard = np.pad(heard, (0, -len(heard) % 16000)).reshape(-1, 16000)[:, 4000:-4000]
    spectra = np.abs(np.fft.rfft(heard))
    return [int(each.argmax()) * 2 if each.max() > 50 else 0 for each in spectra]


def part(path, first, seconds, hertz, codec="libx264", rate=25, **options):
    """Write a clip whose pictures show the number of their second, counted from `first`, with a tone."""
    shown = [numbered(first + frame // rate) for frame in range(rate * seconds)]
    wave = tone(seconds, hertz, 48000)
    return write_clip(path, seconds, rate, pictures=shown, codec=codec, sound=wave, sound_rate=48000, **options)


def join(path, *parts):
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


@pytest.mark.parametrize(
    ("ending", "codec", "heard", "begins"),
    [
        slow("ts", "libx264", "aac", (0, 0, 0)),
        ("ts", "mpeg2video", "mp2", (100, 3, 50)),  # back, and ahead by more than a gap
        slow("ts", "libx264", "aac", (2, 1, 90000)),  # back by less than a part lasts
        slow("mpg", "mpeg2video", "mp2", (0, 0, 0)),
    ],
)
def test_joined_recordings_go_on_at_the_end_of_what_came_before(tmp_path, ending, codec, heard, begins):
    spans = [(1, 3, 500, begins[0]), (11, 2, 1500, begins[1]), (21, 4, 2500, begins[2])]
    parts = [
        part(tmp_path / f"{first}.{ending}", first, seconds, hertz, codec, sound_codec=heard, begin=begin)
        for first, seconds, hertz, begin in spans
    ]
    joined, damage = join(tmp_path / f"joined.{ending}", *parts), Damage()
    assert numbers(joined, damage) == [1, 2, 3, 11, 12, 21, 22, 23, 24]
    assert pitches(joined)[:9] == [500] * 3 + [1500] * 2 + [2500] * 4
    assert damage.restarts == 2
    assert list(damage.remarks()) == ["its clock starts anew 2 times, and goes on at the end of what came before"]


@pytest.mark.parametrize(("ending", "read"), [slow("mkv", 2), ("flv", 1), slow("mp4", 1)])
def test_what_ffmpeg_does_not_read_of_joined_recordings_is_told(tmp_path, ending, read):
    parts = [part(tmp_path / f"{n}.{ending}", 10 * n, 2, 500 * n) for n in (1, 2, 3)]
    joined, damage = join(tmp_path / f"joined.{ending}", *parts), Damage()
    assert numbers(joined, damage) == [10, 11, 20, 21][: 2 * read]
    assert damage.unread_bytes == sum(each.stat().st_size for each in parts[read:])
    assert "are another recording" in list(damage.remarks())[-1]
    assert numbers(parts[0], damage := Damage()) == [10, 11]
    assert not list(damage.remarks())


@pytest.mark.parametrize("before", [slow(0.02), 1.5, slow(3.0)])
def test_a_clock_that_wraps_runs_on(tmp_path, before):
    clip, damage = part(tmp_path / "a.ts", 1, 4, 500, begin=WRAP - before), Damage()
    assert numbers(clip, damage) == [1, 2, 3, 4]
    assert pitches(clip)[:4] == [500] * 4
    assert not damage.restarts


@pytest.mark.parametrize("heard", [False, True])
def test_the_clock_of_flv_may_wrap(tmp_path, heard):
    """Muxed from -1 s, whose time stamps are those of 31 bits, with pictures in another order than that of display."""
    shown, damage = [numbered(1 + frame // 25) for frame in range(75)], Damage()
    form = {"codec": "libx264", "options": {"bf": "3", "b-adapt": "0"}, "muxer": BELOW_ZERO}
    wave = {"sound": tone(3, 500, 44100), "sound_rate": 44100} if heard else {}
    clip = write_clip(tmp_path / "a.flv", 3, 25, pictures=shown, begin=-1, **form, **wave)
    assert numbers(clip, damage) == [1, 2, 3]
    assert damage.restarts == 1
    assert pitches(clip)[:3] == [500] * 3 * heard


@pytest.mark.parametrize(("ending", "codec", "heard"), [slow("ts", "libx264", "aac"), slow("mpg", "mpeg2video", "mp2")])
def test_a_recording_that_wraps_twice_is_read_to_its_end(tmp_path, ending, codec, heard):
    begins = (WRAP - 2, WRAP - 1)
    parts = [
        part(tmp_path / f"{n}.{ending}", n, 3, 500, codec, sound_codec=heard, begin=begin)
        for n, begin in zip((1, 4), begins, strict=True)
    ]
    joined = join(tmp_path / f"joined.{ending}", *parts)
    assert numbers(joined) == [1, 2, 3, 4, 5, 6]
    assert pitches(joined)[:6] == [500] * 6


@pytest.mark.parametrize(
    ("form", "codec", "rate"),
    [("h264", "libx264", 10), ("hevc", "libx265", 5), ("m4v", "mpeg4", 12), ("m2v", "mpeg2video", 50)],
)
def test_streams_without_time_stamps_run_at_the_rate_that_they_tell(tmp_path, form, codec, rate):
    shown = [numbered(1 + frame // rate) for frame in range(4 * rate)]
    options = {"x265-params": "log-level=none"} if codec == "libx265" else None
    clip = write_clip(tmp_path / f"a.{form}", 4, rate, pictures=shown, codec=codec, options=options)
    assert numbers(clip) == [1, 2, 3, 4]


def test_the_last_frame_of_a_file_without_durations_is_shown_for_one_at_its_rate(tmp_path):
    clip = write_clip(tmp_path / "a.flv", rate=1, times=[0, 1, 2], codec="flv")
    assert numbers(clip) == [0, 1, 2]


@pytest.mark.parametrize("begin", [-3, slow(-0.5), slow(7)])
def test_seconds_begin_at_the_first_picture_whatever_its_time(tmp_path, begin):
    clip = part(tmp_path / "a.mkv", 1, 3, 500, begin=begin)
    assert numbers(clip) == [1, 2, 3]
    assert pitches(clip)[:3] == [500] * 3


@pytest.mark.parametrize(("codec", "reordered"), [("mpeg4", "0"), ("libx264", "3")])
def test_seconds_before_zero_are_kept(tmp_path, codec, reordered):
    """Matroska from -1 s, whose first 25 pictures get no time from FFmpeg, but whose sound does."""
    shown, damage = [numbered(1 + frame // 25) for frame in range(75)], Damage()
    wave = np.concatenate([tone(1, 500 * second, 48000) for second in (1, 2, 3)])
    form = {"codec": codec, "options": {"bf": reordered, "b-adapt": "0"}, "muxer": BELOW_ZERO}
    clip = write_clip(tmp_path / "a.mkv", 3, 25, pictures=shown, begin=-1, sound=wave, sound_rate=48000, **form)
    assert numbers(clip, damage) == [1, 2, 3]
    assert pitches(clip)[:3] == [500, 1000, 1500]
    assert not damage.restarts


@pytest.mark.parametrize("share", [slow(0.1), 0.35, slow(0.6)])
@pytest.mark.parametrize(("codec", "options"), [slow("libx264", {"bf": "3", "g": "50"}), ("mpeg2video", {"g": "50"})])
def test_sound_begins_with_the_first_picture_that_decodes(tmp_path, share, codec, options):
    """A recording that begins between two key frames: loudness and pictures tell the same second."""
    seconds, rate = 12, 25
    shown = [numbered(frame // 5) for frame in range(seconds * rate)]
    wave = tone(seconds, 1000, 48000) * np.linspace(0, 1.8, seconds * 48000, dtype=np.float32)
    whole = write_clip(
        tmp_path / "a.ts", seconds, rate, pictures=shown, codec=codec, options=options, sound=wave, sound_rate=48000
    ).read_bytes()
    tables, begin = 3 * 188, int(len(whole) * share) // 188 * 188
    (tmp_path / "cut.ts").write_bytes(whole[:tables] + whole[begin:])
    seen = [number / 5 for number in numbers(tmp_path / "cut.ts")]
    heard = sound(tmp_path / "cut.ts", 16000, Damage())
    assert len(seen) > 2
    for second, at in enumerate(seen[:-1]):
        middle = heard[second * 16000 + 7000 : second * 16000 + 9000]
        assert middle.std() * 2**0.5 / 0.9 * seconds == pytest.approx(at + 0.1, abs=0.2)
