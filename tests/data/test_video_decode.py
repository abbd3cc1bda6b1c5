"""Video files as pictures and sound by the second, against clips whose every frame says its number."""

import os
import re
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from clips import HEIGHT, WIDTH, number_of, numbered, tone, write_clip
from conftest import DATA
from reeltag.core.errors import VideoError
from reeltag.data.video.decode import Damage, container, pictures, probe, sound, video_stream

SIZE = (HEIGHT, WIDTH)


def numbers(path, **options):
    return [number_of(picture) for picture in pictures(path, SIZE, Damage(), **options)]


@pytest.mark.parametrize(("codec", "ending"), [("libx264", "mp4"), ("libx264", "mkv"), ("mpeg4", "mp4")])
@pytest.mark.parametrize("rate", [3, 10, 25])
def test_the_picture_of_a_second_is_what_is_shown_in_its_middle(tmp_path, codec, ending, rate):
    clip = write_clip(tmp_path / f"a.{ending}", 4, rate, codec=codec)
    assert numbers(clip) == [int((second + Fraction(1, 2)) * rate) for second in range(4)]


def test_frames_of_any_rate(tmp_path):
    times = [0, 0.3, 0.45, 0.6, 2.4, 2.45, 3.9, 4.0]  # shown until the next
    clip = write_clip(tmp_path / "a.mkv", rate=20, times=times, codec="libx264")
    assert numbers(clip) == [2, 3, 5, 5]


def test_a_clip_shorter_than_a_second_has_one_picture(tmp_path):
    assert numbers(write_clip(tmp_path / "a.mp4", times=[0], rate=10)) == [0]
    assert numbers(write_clip(tmp_path / "b.mp4", 0.3, 10)) == [2]


def test_no_more_seconds_than_asked_for(tmp_path):
    assert numbers(write_clip(tmp_path / "a.mp4", 6, 10), seconds=3) == [5, 15, 25]


def test_frames_that_are_passed_over_and_threads_change_no_pixel(tmp_path, monkeypatch):
    options = {"bf": "3", "g": "250"}  # B-frames, few key frames
    noise = np.random.default_rng(0).integers(0, 256, (4, HEIGHT, WIDTH, 3), np.uint8)
    clip = write_clip(
        tmp_path / "a.mp4", rate=25, codec="libx264", options=options, pictures=[*noise] * 20, times=np.arange(80) / 25
    )
    fast = np.stack(list(pictures(clip, SIZE, Damage())))
    threaded = np.stack(list(pictures(clip, SIZE, Damage(), threads=3)))
    monkeypatch.setattr(video_stream, "_wanted", lambda *_: None)
    whole = np.stack(list(pictures(clip, SIZE, Damage())))
    assert len(whole) == 3
    np.testing.assert_array_equal(fast, whole)
    np.testing.assert_array_equal(threaded, whole)


def test_a_picture_is_the_mean_of_the_pixels_beneath(tmp_path):
    rng = np.random.default_rng(1)
    grey = rng.integers(30, 220, (HEIGHT, WIDTH)).astype(np.uint8).repeat(4, 0).repeat(4, 1)
    clip = write_clip(
        tmp_path / "a.mp4", times=[0], rate=1, pictures=[np.stack([grey] * 3, -1)], codec="libx264", options={"qp": "0"}
    )
    (picture,) = pictures(clip, (HEIGHT // 2, WIDTH // 2), Damage())
    expected = grey.reshape(HEIGHT // 2, 8, WIDTH // 2, 8).mean((1, 3))
    assert np.abs(picture - expected[..., None]).max() < 3  # the range of video is narrower than 256


@pytest.mark.parametrize(("height", "width"), [(2, 2), (2, 4000), (1200, 16)])
def test_any_shape_is_scaled(tmp_path, height, width):
    shape = np.full((height, width, 3), 200, np.uint8)
    clip = write_clip(tmp_path / "a.mkv", times=[0], rate=1, pictures=[shape], codec="ffv1")
    (picture,) = pictures(clip, (32, 32), Damage())
    assert picture.shape == (32, 32, 3)
    assert np.abs(picture.astype(int) - 200).max() < 4


def test_a_rotated_video_stands_upright(tmp_path):
    clip = write_clip(tmp_path / "a.mp4", 2, 10, codec="libx264")
    upright = np.stack(list(pictures(clip, SIZE, Damage())))
    turned = rotate(clip, tmp_path / "b.mp4")
    found = np.stack(list(pictures(turned, (WIDTH, HEIGHT), Damage())))
    expected = np.rot90(upright, -1, axes=(1, 2))  # 90 degrees clockwise, as the matrix says
    assert np.abs(found.astype(int) - expected).mean() < 4


def rotate(source, target):
    """Give a clip's picture a display matrix of 90 degrees clockwise, in place of the identity."""

    def matrix(*values):
        scales = [65536, 65536, 1 << 30] * 3  # 16.16, and 2.30 for the last of each row
        return b"".join(
            (value * scale).to_bytes(4, "big", signed=True) for value, scale in zip(values, scales, strict=True)
        )

    content = source.read_bytes()
    place = content.rindex(matrix(1, 0, 0, 0, 1, 0, 0, 0, 1))  # the track's; the first is the film's
    target.write_bytes(content[:place] + matrix(0, 1, 0, -1, 0, 0, 0, 0, 1) + content[place + 36 :])
    return target


def test_the_sound_is_that_of_the_seconds(tmp_path):
    wave = np.concatenate([tone(1), np.zeros(16000, np.float32), tone(1, 880)])
    heard = sound(write_clip(tmp_path / "a.mkv", 3, 10, sound=wave), 16000, Damage())
    loudness = np.sqrt(np.square(heard[: 3 * 16000].reshape(3, 16000)[:, 2000:-2000]).mean(1))
    np.testing.assert_allclose(loudness, [0.5 / np.sqrt(2), 0, 0.5 / np.sqrt(2)], atol=0.02)
    peak = np.abs(np.fft.rfft(heard[2 * 16000 + 2000 : 3 * 16000 - 2000])).argmax() * 16000 / 12000
    assert abs(peak - 880) < 3


def test_sound_is_resampled_and_no_longer_than_asked_for(tmp_path):
    clip = write_clip(tmp_path / "a.mkv", 3, 10, sound=tone(3, rate=44100), sound_rate=44100)
    heard = sound(clip, 8000, Damage(), seconds=2)
    assert len(heard) == 16000
    peak = np.abs(np.fft.rfft(heard[4000:12000])).argmax()
    assert peak == 440  # hertz, of a second


def test_sound_may_change_its_form_and_its_clock_on_the_way(tmp_path):
    """Two transport streams one after the other: the second has another rate, and begins at 0 again."""
    for name, rate in (("a.ts", 16000), ("b.ts", 48000)):
        write_clip(tmp_path / name, 2, pictures=(), sound=tone(2, rate=rate), sound_rate=rate)
    (tmp_path / "both.ts").write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    with av.open(str(tmp_path / "both.ts")) as container:
        assert {frame.sample_rate for frame in container.decode(audio=0)} == {16000, 48000}
    heard, first = (sound(tmp_path / name, 16000, Damage()) for name in ("both.ts", "a.ts"))
    np.testing.assert_array_equal(heard[: len(first) - 2000], first[:-2000])


def test_what_a_file_holds(tmp_path):
    both = probe(write_clip(tmp_path / "a.mp4", 2, 10, sound=tone(2)))
    silent = probe(write_clip(tmp_path / "b.mp4", 2, 10))
    heard = probe(write_clip(tmp_path / "c.mp4", 2, pictures=(), sound=tone(2)))
    assert [(media.pictures, media.sound) for media in (both, silent, heard)] == [
        (True, True),
        (True, False),
        (False, True),
    ]
    assert both.seconds == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("content", [b"", b"no video at all " * 100, b"\0" * 5000])
def test_what_is_no_media_is_refused_by_name(tmp_path, content):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"a\.mp4: "):
        probe(path)


def test_what_cannot_be_opened_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for name in ("missing.mp4", "pipe.mp4", "."):
        with pytest.raises(VideoError, match="cannot be read"):
            probe(tmp_path / name)


def test_a_file_cut_short_gives_what_is_there(tmp_path):
    clip = write_clip(tmp_path / "a.mkv", 6, 10)
    content = clip.read_bytes()
    clip.write_bytes(content[: len(content) // 2])
    found = numbers(clip)
    assert 1 <= len(found) < 6
    assert found == [5, 15, 25, 35, 45][: len(found)]


def remarks(path):
    media, damage = probe(path), Damage()
    seen = list(pictures(path, SIZE, damage)) if media.pictures else []
    return seen, sound(path, 16000, damage), list(damage.remarks())


@pytest.mark.parametrize(
    ("ending", "codec", "told"),
    [
        ("ts", "aac", ["damaged packet", "1 gap of sound, of 2"]),
        ("flac", "flac", ["1 gap of sound, of 2"]),
        ("ogg", "libopus", ["1 gap of sound, of"]),
        ("wav", "pcm_s16le", ["1 damaged packet decoded as far as possible"]),
    ],
)
def test_what_is_missing_in_the_middle_is_remarked_on(tmp_path, ending, codec, told):
    pictures = None if ending == "ts" else ()
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 6 * 48000)
    whole = write_clip(
        tmp_path / f"whole.{ending}",
        6,
        pictures=pictures,
        sound=noise,
        sound_rate=48000,
        sound_codec=codec,
        codec="mpeg2video",
    )
    content = whole.read_bytes()
    begin, end = (round(len(content) * share) // 188 * 188 for share in (0.33, 0.7))
    (tmp_path / f"cut.{ending}").write_bytes(content[:begin] + content[end:])
    assert remarks(whole)[2] == []
    found = remarks(tmp_path / f"cut.{ending}")[2]
    assert len(found) == len(told)
    assert all(part in remark for part, remark in zip(told, found, strict=True)), found


@pytest.mark.parametrize("length", [0, 2**32 - 1])
def test_wav_that_was_written_to_a_pipe_is_whole(tmp_path, length):
    clip = write_clip(tmp_path / "a.wav", pictures=(), sound=tone(2), sound_codec="pcm_s16le")
    content = bytearray(clip.read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = length.to_bytes(4, "little")
    clip.write_bytes(content)
    _, heard, found = remarks(clip)
    assert (len(heard), found) == (32000, [])


def test_avi_cut_short_tells_its_length(tmp_path):
    noise = list(np.random.default_rng(0).integers(0, 256, (60, 64, 64, 3), np.uint8))
    clip = write_clip(tmp_path / "a.avi", 6, 10, pictures=noise)
    content = clip.read_bytes()
    assert probe(clip).seconds == 6
    clip.write_bytes(content[: len(content) // 2])
    assert len(list(pictures(clip, 16, Damage()))) < 4
    assert probe(clip).seconds == 6


def test_damaged_packets_are_counted_and_passed_over(tmp_path, monkeypatch):
    clip = write_clip(tmp_path / "a.mkv", 6, 10, sound=tone(6))
    content = bytearray(clip.read_bytes())
    rng = np.random.default_rng(0)
    for place in rng.integers(len(content) // 4, len(content), 60):
        content[place] ^= 0xFF
    clip.write_bytes(content)
    damage = Damage()
    assert list(pictures(clip, SIZE, damage))
    sound(clip, 16000, damage)
    assert damage.packets > 0
    monkeypatch.setattr(container, "MAX_DAMAGED", 0)
    with pytest.raises(VideoError, match="packets are damaged"):
        sound(clip, 16000, Damage())


def test_frames_may_be_too_large(tmp_path, monkeypatch):
    clip = write_clip(tmp_path / "a.mp4", 1, 10)
    monkeypatch.setattr(container, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(VideoError, match="64 x 48 are larger than"):
        list(pictures(clip, SIZE, Damage()))


def test_a_file_that_gives_nothing_for_long_is_given_up(tmp_path, monkeypatch):
    clip = write_clip(tmp_path / "a.mp4", 3, 10)
    monkeypatch.setattr(container, "STALLED_SECONDS", -1.0)
    with pytest.raises(VideoError, match="yielded nothing for"):
        list(pictures(clip, SIZE, Damage()))


def test_a_reader_that_takes_its_time_is_not_taken_for_a_file_that_gives_nothing(tmp_path, monkeypatch):
    clip = write_clip(tmp_path / "a.mp4", 3, 10)
    monkeypatch.setattr(container, "STALLED_SECONDS", 0.2)
    for number, picture in enumerate(pictures(clip, SIZE, Damage())):
        time.sleep(0.25)
        assert number_of(picture) == 10 * number + 5


def test_packets_that_a_strict_decoder_refuses_are_decoded_whatever_the_threads(tmp_path, monkeypatch):
    """Messages that are shorter than H.264 wants before each picture: FFmpeg passes over them unless it is strict."""
    whole = write_clip(tmp_path / "a.h264", 3, 10, codec="libx264", options={"tune": "zerolatency"})
    message, slices = b"\0\0\1\x06\x05\x04abcd\x80", re.compile(b"\0\0\1(?=[\x41\x65])")
    odd = tmp_path / "b.h264"
    odd.write_bytes(slices.sub(lambda found: message + found[0], whole.read_bytes()))
    monkeypatch.setattr(container, "MAX_DAMAGED", 10)
    for threads in (1, 2):
        damage = Damage()
        np.testing.assert_array_equal(
            list(pictures(odd, SIZE, damage, threads=threads)), list(pictures(whole, SIZE, Damage()))
        )
        assert damage == Damage()


@pytest.mark.parametrize("name", ["bigbuckbunny.mp4", "bikes.mp4", "demo.mp4", "pancake.mkv", "test.avi", "test.mp4"])
def test_real_clips_as_a_whole_decoding_gives_them(name, monkeypatch):
    path = Path(DATA) / "videos" / name
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    fast = np.stack(list(pictures(path, SIZE, Damage())))
    monkeypatch.setattr(video_stream, "_wanted", lambda *_: None)
    np.testing.assert_array_equal(fast, np.stack(list(pictures(path, SIZE, Damage(), threads=2))))
    assert len(fast) == round(probe(path).seconds)


def test_the_numbers_that_clips_show():
    assert [number_of(numbered(number)) for number in (0, 1, 37, 255)] == [0, 1, 37, 255]
