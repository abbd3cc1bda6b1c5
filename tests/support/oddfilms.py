"""Films whose frames depend on each other in odd ways, and films that are cut, damaged or lack packets."""

from fractions import Fraction

import av
import numpy as np

HEIGHT, WIDTH = 96, 128
RATE = 25
X264 = {"crf": "18", "bf": "3"}
X265 = "log-level=none:keyint=25:bframes=4:b-adapt=0"
OPEN = {"g": "25", "x264-params": "open-gop=1:bframes=3:b-adapt=0:scenecut=0"}


def moving(number, texture):
    """A picture of a film whose every pixel changes with each frame."""
    y, x = number * 3 % 64, number * 5 % 64
    return ((texture[y : y + HEIGHT, x : x + WIDTH].astype(int) + 7 * number) % 256).astype(np.uint8)


def film(path, codec, options=None, *, frames=150, pixels="yuv420p", form=None, times=None, container=None):
    """Write a film of moving texture, 25 frames a second or at the given times in seconds."""
    texture = np.random.default_rng(0).integers(0, 256, (HEIGHT + 64, WIDTH + 64, 3), np.uint8)
    with av.open(str(path), "w", format=form, options=container or {}) as out:
        stream = out.add_stream(codec, rate=RATE, options=options or {})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, pixels
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(moving(number, texture), format="rgb24").reformat(format=pixels)
            frame.pts = number if times is None else round(times[number] * 1000)
            frame.time_base = Fraction(1, RATE if times is None else 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def cut(source, share):
    """Leave out the first share of a transport stream, behind its tables."""
    content = source.read_bytes()
    path = source.with_stem(f"{source.stem} from {share}")
    path.write_bytes(content[: 3 * 188] + content[int(len(content) // 188 * share) * 188 :])
    return path


def thinned(source, seed, packets):
    """Leave out some packets of a transport stream."""
    content = source.read_bytes()
    count = len(content) // 188
    lost = {int(number) for number in np.random.default_rng(seed).integers(count // 5, count, packets)}
    path = source.with_stem(f"{source.stem} without {packets}")
    path.write_bytes(b"".join(content[188 * n : 188 * n + 188] for n in range(count) if n not in lost))
    return path


def flipped(source, seed, bits):
    """Flip some bits behind the first tenth of a file."""
    content, random = bytearray(source.read_bytes()), np.random.default_rng(seed)
    for place in random.integers(len(content) // 10, len(content) * 98 // 100, bits):
        content[place] ^= 1 << int(random.integers(8))
    path = source.with_stem(f"{source.stem} flipped {seed}")
    path.write_bytes(bytes(content))
    return path


def odd_films(folder):
    """Yield the films, each when it is asked for."""
    yield film(folder / "pyramid.mp4", "libx264", {"x264-params": "b-pyramid=normal:bframes=8:b-adapt=0:keyint=250"})
    yield flipped(folder / "pyramid.mp4", 3, 8)
    broadcast = film(folder / "open groups.ts", "libx264", OPEN)
    yield from (broadcast, cut(broadcast, 0.13), cut(broadcast, 0.37), thinned(broadcast, 1, 12))
    yield flipped(broadcast, 6, 10)
    refreshed = film(folder / "refresh.ts", "libx264", {"g": "50", "x264-params": "intra-refresh=1:bframes=2"})
    yield from (refreshed, cut(refreshed, 0.3))
    yield film(folder / "many references.mkv", "libx264", {"refs": "16", "bf": "16", "x264-params": "b-adapt=0"})
    yield film(folder / "interlaced.ts", "libx264", {"x264-params": "interlaced=1:tff=1:bframes=3"})
    yield film(folder / "fragments.mp4", "libx264", X264, container={"movflags": "frag_keyframe+empty_moov"})
    times = np.cumsum(np.random.default_rng(6).choice([0.02, 0.04, 0.1, 0.3], 100))
    yield film(folder / "times vary.mkv", "libx264", X264, frames=100, times=times)
    yield film(folder / "early.mp4", "libx264", X264, times=np.arange(150) / RATE - 2)
    hevc = film(folder / "hevc.ts", "libx265", {"x265-params": f"{X265}:open-gop=1"})
    yield from (hevc, cut(hevc, 0.3), thinned(hevc, 3, 8))
    layers = film(folder / "layers.mp4", "libx265", {"x265-params": f"{X265}:temporal-layers=3:b-pyramid=1"})
    yield from (layers, flipped(layers, 4, 8))
    mpeg2 = film(folder / "mpeg2.ts", "mpeg2video", {"g": "12", "bf": "2", "qscale": "2"})
    yield from (mpeg2, cut(mpeg2, 0.21))
    yield film(folder / "fields.mpg", "mpeg2video", {"bf": "2", "flags": "+ildct+ilme"}, form="vob")
    yield film(folder / "mpeg4.mkv", "mpeg4", {"bf": "2", "g": "50"})
    yield film(folder / "mpeg4.avi", "mpeg4", {"bf": "2", "g": "50"})
    yield film(folder / "h264.avi", "libx264", X264)
    vp8 = film(folder / "vp8.webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"})
    yield from (vp8, flipped(vp8, 10, 10))
    yield film(folder / "vp9.webm", "libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "25", "cpu-used": "8"})
    mjpeg = film(folder / "mjpeg.mov", "mjpeg", pixels="yuvj420p")
    yield from (mjpeg, flipped(mjpeg, 15, 40))
    yield film(folder / "prores.mov", "prores_ks", pixels="yuv422p10le")
    yield film(folder / "ffv1.mkv", "ffv1", {"g": "10"})
    yield film(folder / "windows.asf", "wmv2", {"g": "50"})
    yield film(folder / "animated.gif", "gif", frames=50, pixels="rgb8")
    yield film(folder / "raw.h264", "libx264", X264, form="h264")
