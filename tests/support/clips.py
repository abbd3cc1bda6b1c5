"""Short clips that PyAV writes: each picture says which it is, and the sound is known."""

from fractions import Fraction

import av
import numpy as np

WIDTH, HEIGHT = 64, 48
BITS = 8


def numbered(number, width=WIDTH, height=HEIGHT):
    """A picture of eight bars, white where the number has a 1; the highest bit is on the left."""
    bits = [(number >> bit) & 1 for bit in reversed(range(BITS))]
    row = np.repeat(np.array(bits, np.uint8) * 235 + 10, -(-width // BITS))[:width]
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def number_of(picture):
    """The number that a picture shows."""
    bars = picture[:, :, 0].astype(float).reshape(picture.shape[0], BITS, -1).mean((0, 2))
    return int("".join("1" if bar > 128 else "0" for bar in bars), 2)


def tone(seconds, hertz=440.0, rate=16000, loudness=0.5):
    return (loudness * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


BELOW_ZERO = {"avoid_negative_ts": "disabled"}


def write_clip(
    path,
    seconds=4,
    rate=10,
    *,
    sound=None,
    sound_rate=16000,
    sound_codec="aac",
    codec="mpeg4",
    times=None,
    pictures=None,
    options=None,
    begin=0,
    muxer=None,
):
    """Write a clip.

    Args:
        times: of the frames in seconds; every 1 / rate by default.
        begin: time of the first frame and sample in seconds.
        muxer: options of the container; `BELOW_ZERO` keeps times below zero, which FFmpeg else moves up to it.
        pictures: [height, width, 3] each; numbered ones by default, no stream for ().
        sound: samples, or None for no stream.
    """
    regular = times is None
    times = [Fraction(n, rate) for n in range(round(seconds * rate))] if times is None else times
    pictures = [numbered(n % 256) for n in range(len(times))] if pictures is None else pictures
    with av.open(str(path), "w", container_options=muxer or {}) as container:
        if len(pictures):
            stream = container.add_stream(codec, rate=rate, options=options or {})
            stream.height, stream.width = pictures[0].shape[:2]
            stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
            if not regular:
                stream.codec_context.time_base = Fraction(1, 1000)
        if sound is not None:
            heard = container.add_stream(sound_codec, rate=sound_rate, layout="mono")
        for at, picture in zip(times, pictures, strict=False):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round((begin + at) * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        if len(pictures):
            container.mux(stream.encode(None))
        if sound is not None:
            frame = av.AudioFrame.from_ndarray(np.asarray(sound, np.float32)[None], format="flt", layout="mono")
            frame.sample_rate, frame.pts = sound_rate, round(begin * sound_rate)
            frame.time_base = Fraction(1, sound_rate)
            container.mux(heard.encode(frame))
            container.mux(heard.encode(None))
    return path
