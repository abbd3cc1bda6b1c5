"""Pictures of odd films against plain decoding of every frame; their orientation, and the choice of the stream."""

import math
import struct
from fractions import Fraction
from itertools import product

import av
import numpy as np
import pytest
from av.video.reformatter import Interpolation

from clips import HEIGHT, WIDTH, number_of, numbered, write_clip
from oddfilms import film, flipped, odd_films
from reeltag.data.video.decode import Damage, pictures

SIZE = (48, 64)
SCALING = Interpolation.AREA | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND
ONE = 1 << 16  # in a display matrix


def decoded_plainly(path):
    """Return the picture of each second, from every frame that FFmpeg gives in one thread."""
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.thread_count, expected = 1, Fraction(0)
        for packet in container.demux(stream):
            try:
                decoded = packet.decode()
            except av.FFmpegError:
                continue
            for frame in decoded:
                ticks = frame.dts if container.format.name == "avi" else frame.pts  # AVI has no times of display
                at = expected if ticks is None else ticks * frame.time_base
                lasts = frame.duration * frame.time_base if frame.duration else 1 / Fraction(stream.guessed_rate)
                expected = at + lasts
                if not frames or at > frames[-1][0]:
                    small = frame.reformat(*SIZE[::-1], format="rgb24", interpolation=SCALING)
                    frames.append((at, lasts, small.to_ndarray()))
    begin, end = frames[0][0], frames[-1][0] + frames[-1][1]
    middles = [begin + second + Fraction(1, 2) for second in range(300)]
    return [
        [shown for at, _, shown in frames if at <= m][-1] for number, m in enumerate(middles) if m < end or not number
    ]


def check(path):
    """Compare with plain decoding, for one and for three threads of the decoder."""
    expected = np.stack(decoded_plainly(path))
    for threads in (1, 3):
        found = np.stack(list(pictures(path, SIZE, Damage(), threads=threads)))
        np.testing.assert_array_equal(found, expected, err_msg=f"{path.name}, {threads} threads")


def test_a_film_with_frames_to_skip_is_that_of_plain_decoding(tmp_path):
    check(film(tmp_path / "a.mp4", "libx264", {"x264-params": "b-pyramid=normal:bframes=8:b-adapt=0"}, frames=60))


@pytest.mark.slow
def test_odd_films_are_those_of_plain_decoding(tmp_path):
    films = list(odd_films(tmp_path))
    assert len(films) > 30
    for path in films:
        check(path)


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "codec"), [("mp4", "libx264"), ("ts", "libx265")])
def test_damaged_films_are_those_of_plain_decoding(tmp_path, ending, codec):
    """Not of MPEG-2, of which FFmpeg gives other pictures each time where they are damaged."""
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {"bf": "2", "g": "50"}
    whole = film(tmp_path / f"a.{ending}", codec, options)
    for seed in range(8):
        check(flipped(whole, seed, 1 + 3 * seed))


def oriented(path, matrix, codec="mpeg4"):
    """Write a clip whose track has a display matrix (a, b, c, d); return its picture without and with the matrix."""
    clip = film(path, codec, frames=2)
    (plain,) = pictures(clip, (96, 128), Damage())
    content = clip.read_bytes()
    place = content.index(struct.pack(">9i", ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30), content.index(b"tkhd"))
    a, b, c, d = (round(each * ONE) for each in matrix)
    new = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    clip.write_bytes(content[:place] + new + content[place + len(new) :])
    return plain


def displayed(plain, matrix):
    """Apply a display matrix of right angles pixel by pixel, from its definition."""
    height, width = plain.shape[:2]
    a, b, c, d = matrix
    places = {(a * x + c * y, b * x + d * y): plain[y, x] for y, x in product(range(height), range(width))}
    left, top = (min(place[axis] for place in places) for axis in (0, 1))
    sides = (height, width) if a else (width, height)
    result = np.empty((*sides, 3), np.uint8)
    for (x, y), pixel in places.items():
        result[y - top, x - left] = pixel
    return result


@pytest.mark.parametrize("matrix", [(a, 0, 0, d) for a, d in product((1, -1), repeat=2)])
def test_pictures_may_be_mirrored(tmp_path, matrix):
    plain = oriented(tmp_path / "a.mp4", matrix)
    (found,) = pictures(tmp_path / "a.mp4", (96, 128), Damage())
    np.testing.assert_array_equal(found, displayed(plain, matrix))


@pytest.mark.parametrize("matrix", [(0, b, c, 0) for b, c in product((1, -1), repeat=2)])
def test_pictures_may_be_turned_and_mirrored(tmp_path, matrix):
    plain, damage = oriented(tmp_path / "a.mp4", matrix), Damage()
    (found,) = pictures(tmp_path / "a.mp4", (128, 96), damage)
    np.testing.assert_array_equal(found, displayed(plain, matrix))
    (small,) = pictures(tmp_path / "a.mp4", 64, damage)
    assert small.shape == (64, 48, 3)
    assert not list(damage.remarks())


@pytest.mark.parametrize(("angle", "right"), [(20, (1, 0, 0, 1)), (80, (0, 1, -1, 0)), (160, (-1, 0, 0, -1))])
def test_other_angles_are_taken_as_the_nearest_right_angle_with_a_remark(tmp_path, angle, right):
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    plain, damage = oriented(tmp_path / "a.mp4", (cosine, sine, -sine, cosine)), Damage()
    (found,) = pictures(tmp_path / "a.mp4", (96, 128) if right[0] else (128, 96), damage)
    np.testing.assert_array_equal(found, displayed(plain, right))
    assert list(damage.remarks()) == [
        "its pictures are to be turned by an angle between right angles, taken as the nearest of these"
    ]


@pytest.mark.parametrize(("flip", "turn"), [("horizontal", 0), ("vertical", 0), ("horizontal", 90)])
def test_orientation_may_stand_in_the_stream(tmp_path, flip, turn):
    """H.264 carries it in a message of its own; the library's filter writes it."""
    clip = film(tmp_path / "a.h264", "libx264", form="h264", frames=30)
    plain = np.stack(list(pictures(clip, (96, 128), Damage())))
    setting = f"h264_metadata=display_orientation=insert:flip={flip}:rotate={turn}"
    with av.open(str(clip)) as source, (tmp_path / "b.h264").open("wb") as target:
        stream = source.streams.video[0]
        context = av.bitstream.BitStreamFilterContext(setting, stream)
        for packet in source.demux(stream):
            for changed in context.filter(packet if packet.size else None):
                target.write(bytes(changed))
    found = np.stack(list(pictures(tmp_path / "b.h264", (128, 96) if turn else (96, 128), Damage())))
    mirrored = plain[:, :, ::-1] if flip == "horizontal" else plain[:, ::-1]
    assert len(found) == 1  # and is not the first frame, which alone has the message
    np.testing.assert_array_equal(found, np.rot90(mirrored, turn // 90, axes=(1, 2)))


def with_exif(path, orientation):
    """Write a JPEG whose EXIF data say its orientation."""
    clip = film(path, "mjpeg", frames=1, pixels="yuvj420p", form="mjpeg")
    content = clip.read_bytes()
    data = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + bytes([orientation]) + bytes(7)
    clip.write_bytes(content[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + content[2:])
    return clip


def test_where_the_library_cannot_read_the_matrix_pictures_are_turned_with_a_remark(tmp_path):
    (plain,) = pictures(with_exif(tmp_path / "a.jpg", 1), (96, 128), Damage())
    for orientation, turns in ((3, 2), (6, -1), (8, 1)):
        clip, damage = with_exif(tmp_path / "b.jpg", orientation), Damage()
        (found,) = pictures(clip, (128, 96) if turns % 2 else (96, 128), damage)
        np.testing.assert_array_equal(found, np.rot90(plain, turns))
        assert "turned, but not mirrored" in next(damage.remarks())


def with_still(path, *, default="still", film_codec="libx264", still_codec="mjpeg", stills=1):
    """Write three seconds of a film behind a stream of one picture or several."""
    with av.open(str(path), "w") as out:
        still, moving = out.add_stream(still_codec, rate=10), out.add_stream(film_codec, rate=10)
        for stream in (still, moving):
            stream.height, stream.width = HEIGHT, WIDTH
        still.pix_fmt = {"mjpeg": "yuvj420p", "png": "rgb24"}.get(still_codec, "yuv420p")
        moving.pix_fmt = "yuvj420p" if film_codec == "mjpeg" else "yuv420p"
        still.disposition = still.disposition.default if default == "still" else type(still.disposition)(0)
        for number in range(30):
            for stream, shown in ((still, numbered(200)), (moving, numbered(1 + number // 10))):
                if stream is still and number >= stills:
                    continue
                frame = av.VideoFrame.from_ndarray(shown, format="rgb24").reformat(format=stream.pix_fmt)
                frame.pts, frame.time_base = number, Fraction(1, 10)
                out.mux(stream.encode(frame))
        for stream in (still, moving):
            out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("ending", "options"),
    [
        ("mkv", {"default": "neither"}),
        ("mkv", {"default": "still"}),
        ("mov", {"still_codec": "png"}),
        ("mp4", {"still_codec": "libx264"}),
        ("mov", {"film_codec": "mjpeg"}),
    ],
)
def test_a_picture_that_stands_still_does_not_hide_the_film(tmp_path, ending, options):
    clip = with_still(tmp_path / f"a.{ending}", **options)
    assert [number_of(each) for each in pictures(clip, (HEIGHT, WIDTH), Damage())] == [1, 2, 3]


def test_of_several_films_the_one_is_taken_that_ffmpeg_plays(tmp_path):
    clip = with_still(tmp_path / "a.mkv", stills=30)
    with av.open(str(clip)) as container:
        assert container.streams.best("video").index == 0
    assert [number_of(each) for each in pictures(clip, (HEIGHT, WIDTH), Damage())] == [200] * 3


def test_a_clip_of_one_picture(tmp_path):
    for ending, codec in (("mkv", "ffv1"), ("mp4", "libx264"), ("ts", "mpeg2video"), ("avi", "mpeg4")):
        clip = write_clip(tmp_path / f"a.{ending}", rate=25, pictures=[numbered(9)], codec=codec)
        assert [number_of(each) for each in pictures(clip, (HEIGHT, WIDTH), Damage())] == [9]
