"""Media files as people have them: two hundred that are odd, or damaged in ways that repeat."""

import struct
from fractions import Fraction
from itertools import count

import av
import numpy as np

from clips import numbered, tone, write_clip

CUTS = (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.999)  # share of a file that is left
# ending, codecs of pictures and sound, pixels, and the rate of the sound
KINDS = (
    ("mp4", "libx264", "aac", "yuv420p", 16000),
    ("mkv", "ffv1", "flac", "bgr0", 16000),
    ("avi", "mpeg4", "libmp3lame", "yuv420p", 44100),
    ("webm", "libvpx", "libopus", "yuv420p", 48000),
    ("ts", "mpeg2video", "mp2", "yuv420p", 44100),
    ("mov", "mjpeg", "pcm_s16le", "yuvj422p", 22050),
    ("flv", "flv", "libmp3lame", "yuv420p", 44100),
)
PIXELS = (
    "gray",
    "gray16le",
    "rgb24",
    "yuv444p",
    "yuv420p10le",
    "yuva420p",
    "rgba",
    "gbrp12le",
    "rgb565le",
    "monob",
    "nv12",
)


def write_media(path, codec, pixels="yuv420p", sound=None, rate=16000, shape=(48, 64), pictures=15):
    """Three seconds of pictures, five a second, and of sound where a codec is given."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=5)
        (stream.height, stream.width), stream.pix_fmt = shape, pixels
        heard = container.add_stream(sound, rate=rate, layout="mono") if sound else None
        for number in range(pictures):
            picture = np.resize(numbered(number * 9), (*shape, 3))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = number, Fraction(1, 5)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if heard:
            samples = (tone(3, 440, rate) * 20000).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            fifo, resampler = av.AudioFifo(), av.AudioResampler(heard.format, "mono", rate)
            for part in resampler.resample(frame):
                fifo.write(part)
            while part := fifo.read(heard.codec_context.frame_size or 1024, partial=True):
                container.mux(heard.encode(part))
            container.mux(heard.encode(None))
    return path


def odd(folder):
    """Files that can be tagged, whatever is odd about them; their paths."""
    for ending, codec, sound, pixels, rate in KINDS:
        yield write_media(folder / f"whole.{ending}", codec, pixels, sound, rate)
    yield write_media(folder / "no sound.mp4", "mpeg4")
    yield write_clip(folder / "no pictures.m4a", pictures=(), sound=tone(2))
    yield write_clip(folder / "no pictures.mp4", pictures=(), sound=tone(2))
    yield write_clip(folder / "five seconds.mp4", 5, 10, sound=tone(5))
    yield write_clip(folder / "times vary.mkv", times=[0, 0.04, 0.05, 1.7, 1.71, 4, 4.5])
    yield write_clip(folder / "times jump.mkv", times=[0, 1, 4000])
    yield write_clip(folder / "one frame.mkv", times=[0])
    yield write_clip(folder / "sound is longer.mp4", 1, 10, sound=tone(9))
    yield write_clip(folder / "sound is shorter.mp4", 6, 10, sound=tone(0.5))
    yield write_clip(folder / "loud.mkv", 2, 10, sound=tone(2, loudness=40))
    yield write_media(folder / "one pixel.mkv", "ffv1", "gray", shape=(1, 1))
    yield write_media(folder / "one row.mkv", "ffv1", "bgr0", shape=(1, 4000))
    yield write_media(folder / "one column.nut", "rawvideo", "rgb24", shape=(4000, 1))
    yield write_media(folder / "eight thousand.mkv", "mjpeg", "yuvj420p", shape=(4320, 7680), pictures=1)
    yield write_media(folder / "animated.gif", "gif", "rgb8")
    for pixels in PIXELS:
        codec = {"gray": "ffv1", "yuv420p10le": "libx265", "yuv444p": "libx264"}.get(pixels, "rawvideo")
        yield write_media(folder / f"pixels {pixels}.{'nut' if codec == 'rawvideo' else 'mkv'}", codec, pixels)
    for ending, other in (("mp4", "avi"), ("mkv", "mp4"), ("webm", "txt"), ("flv", "jpg")):
        (folder / f"{ending} is called.{other}").write_bytes((folder / f"whole.{ending}").read_bytes())
        yield folder / f"{ending} is called.{other}"
    yield rotated(folder / "whole.mp4", folder / "rotated.mp4")
    for length in (0x7FFFFFFF, 0xFFFFFFFF):
        yield longer(folder / "whole.mp4", folder / f"says {length} ticks.mp4", length)


def rotated(source, path):
    """The pictures by a quarter: the display matrix of the track in place of the identity."""
    fixed, upright = 65536, b"".join(struct.pack(">i", n) for n in (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30))
    content = source.read_bytes()
    place = content.index(upright, content.index(b"tkhd"))
    turned = b"".join(struct.pack(">i", n) for n in (0, fixed, 0, -fixed, 0, 0, 0, 0, 1 << 30))
    path.write_bytes(content[:place] + turned + content[place + 36 :])
    return path


def longer(source, path, length):
    """The film and its tracks say another length than they have."""
    content = bytearray(source.read_bytes())
    for box, offset in ((b"mvhd", 20), (b"mdhd", 20), (b"tkhd", 24)):
        for _ in range(content.count(box)):
            at = content.index(box) + offset
            content[at : at + 4] = length.to_bytes(4, "big")
            content[at - offset : at - offset + 4] = box.upper()  # is found no more
    for box in (b"mvhd", b"mdhd", b"tkhd"):
        content = content.replace(box.upper(), box)
    path.write_bytes(content)
    return path


def no_media(folder):
    """Files that hold nothing to be tagged."""
    contents = {
        "empty.mp4": b"",
        "a byte.mkv": b"\x1a",
        "text.mp4": b"this is no video\n" * 100,
        "page.avi": b"<!doctype html><title>404</title>",
        "zeros.mov": bytes(5000),
        "noise.ts": np.random.default_rng(5).bytes(5000),
        "program.mp4": b"#!/bin/sh\nexit 1\n",
        "list.mp4": b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
        "joined.mp4": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        "box.mp4": (0xFFFFFFFF).to_bytes(4, "big") + b"moov" + bytes(200),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        yield folder / name


def damaged(folder):
    """Whole files of each kind with damage of several kinds, without end; each is written when it is asked for."""
    sources = [folder / f"whole.{kind[0]}" for kind in KINDS]
    for number in count():
        random = np.random.default_rng(number)
        source = sources[number % len(sources)]
        turn = number // len(sources)
        content = bytearray(source.read_bytes())
        what = ("cut", "flipped", "head", "erased", "moved", "cut")[turn % 6]
        if what == "cut":
            del content[max(1, int(len(content) * CUTS[(number + turn) % len(CUTS)])) :]
        elif what == "flipped":
            for place in random.integers(0, len(content), 1 + len(content) // 300):
                content[place] ^= 1 << random.integers(8)
        elif what == "head":
            for place in random.integers(0, min(600, len(content)), 4):
                content[place] = random.integers(256)
        elif what == "erased":
            begin = int(random.integers(0, len(content) * 3 // 4))
            content[begin : begin + len(content) // 5] = bytes(len(content) // 5)
        else:
            middle = int(random.integers(1, len(content)))
            content = content[middle:] + content[:middle]
        path = folder / f"{number:03} {what}{source.suffix}"
        path.write_bytes(content)
        yield path
