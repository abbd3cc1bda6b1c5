"""Sound is the mean of its channels on the clock of the pictures, against plain decoding and known waves."""

from fractions import Fraction
from itertools import product

import av
import numpy as np
import pytest

from clips import tone, write_clip
from reeltag.data.video.decode import Damage, pictures, sound
from reeltag.data.video.features import open_pipeline

RNG = np.random.default_rng(0)
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}


def layout_of(channels, codec=""):
    wide = codec == "alac" and channels == 8
    return "7.1(wide)" if wide else LAYOUTS.get(channels, f"{channels}C")


def frame_of(waves, rate, form, codec):
    """A frame of waves [channels, n] in [-1, 1], in a format that FFmpeg converts them to."""
    packed = np.ascontiguousarray(np.asarray(waves, np.float32).T).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout_of(len(waves), codec))
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    if form == "flt":
        return frame
    (converted,) = av.AudioResampler(format=form).resample(frame)
    return converted


def write_sound(path, waves, rate, codec="pcm_f32le", form="flt", pictures=None, begin=0.0):
    """Write waves [channels, n], with a grey picture every tenth of a second for `pictures` seconds."""
    with av.open(str(path), "w") as out:
        heard = out.add_stream(codec, rate=rate, layout=layout_of(len(waves), codec))
        heard.codec_context.format = form
        if pictures:
            shown = out.add_stream("mpeg4", rate=10)
            shown.width, shown.height, shown.pix_fmt = 32, 32, "yuv420p"
            for number in range(round(pictures * 10)):
                grey = np.full((32, 32, 3), 100, np.uint8)
                picture = av.VideoFrame.from_ndarray(grey, format="rgb24").reformat(format="yuv420p")
                picture.pts, picture.time_base = number, Fraction(1, 10)
                out.mux(shown.encode(picture))
            out.mux(shown.encode(None))
        frame = frame_of(waves, rate, form, codec)
        frame.pts, frame.time_base = round(begin * rate), Fraction(1, rate)
        size = heard.codec_context.frame_size
        cutter = av.AudioResampler(format=form, frame_size=size)
        for part in [*cutter.resample(frame), *cutter.resample(None)] if size else [frame]:
            out.mux(heard.encode(part))
        out.mux(heard.encode(None))
    return path


def plainly_decoded(path, channels):
    """The mean of the channels of all frames as floats, one after the other."""
    heard, resampler = [], av.AudioResampler(format="dbl")
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            heard += [part.to_ndarray().reshape(-1, channels) for part in resampler.resample(frame)]
    return np.concatenate(heard).mean(1)


def rms(values):
    return float(np.sqrt(np.mean(np.square(values))))


FORMS = [
    ("pcm_u8", "u8", "wav"),
    ("pcm_s16le", "s16", "wav"),
    ("pcm_s24le", "s32", "wav"),
    ("pcm_s32le", "s32", "wav"),
    ("pcm_s64le", "s64", "wav"),
    ("pcm_f32le", "flt", "wav"),
    ("pcm_f64le", "dbl", "wav"),
    ("flac", "s16", "flac"),
    ("alac", "s16p", "m4a"),
    ("wavpack", "s32p", "wv"),
    ("wavpack", "fltp", "wv"),
    ("aac", "fltp", "m4a"),
]
STEP = {"u8": 2**-7, "s16": 2**-15, "s16p": 2**-15}  # of integers; the rest is finer than 1e-6


@pytest.mark.parametrize(("codec", "form", "ending"), FORMS)
def test_any_format_and_number_of_channels_gives_their_mean(tmp_path, codec, form, ending):
    for channels, rate in product((1, 2, 6, 8), (8000, 48000)):
        waves = RNG.uniform(-1, 1, (channels, 3000)).astype(np.float32)
        path = write_sound(tmp_path / f"{channels}-{rate}.{ending}", waves, rate, codec, form)
        heard, expected = sound(path, rate, Damage()), plainly_decoded(path, channels)
        assert rms(heard - expected) < 1e-6
        if codec != "aac":
            assert len(heard) == 3000
            assert np.abs(heard - waves.mean(0)).max() <= STEP.get(form, 1e-6)


@pytest.mark.parametrize(("codec", "form", "ending"), [("pcm_s16le", "s16", "wav"), ("wavpack", "fltp", "wv")])
@pytest.mark.parametrize("channels", [3, 9, 64])
def test_channels_of_unusual_number(tmp_path, channels, codec, form, ending):
    waves = RNG.uniform(-1, 1, (channels, 2000)).astype(np.float32)
    heard = sound(write_sound(tmp_path / f"a.{ending}", waves, 16000, codec, form), 16000, Damage())
    assert np.abs(heard - waves.mean(0)).max() < 2**-15


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000, 192000])
def test_a_tone_of_any_rate_is_the_same_tone(tmp_path, rate):
    """The known wave, at the right places from the first sample to the last."""
    path = write_sound(tmp_path / "a.wav", [tone(2, 440, rate)] * 2, rate)
    heard = sound(path, 16000, Damage())
    assert len(heard) == 32000
    assert np.abs(heard - tone(2))[100:-100].max() < 1e-3


@pytest.mark.parametrize("form", ["s16", "flt"])
def test_equal_channels_sound_as_one_and_none_is_cut_off(tmp_path, form):
    """Copies of a loud sound in 1, 2, 6 and 8 channels give the same features."""
    pipeline, wave = open_pipeline("none", "logmel"), 0.99 * np.sin(np.cumsum(np.linspace(0.05, 1, 32000)))
    codec, codes = {"s16": "pcm_s16le", "flt": "pcm_f32le"}[form], []
    for channels in (1, 2, 6, 8):
        path = write_sound(tmp_path / f"{channels}.wav", [wave] * channels, 16000, codec, form)
        heard = sound(path, 16000, Damage())
        assert np.abs(heard - wave).max() < 2**-15
        codes.append(pipeline.stored(pipeline.mapped(pipeline.extract(path).values))[0].astype(int))
    assert np.abs(np.array(codes) - codes[0]).max() <= 1


def test_samples_beyond_full_scale_are_kept(tmp_path):
    waves = np.array([[0.5, 1.5, -2.0, 1.0] * 500])
    heard = sound(write_sound(tmp_path / "a.wav", waves, 16000), 16000, Damage())
    np.testing.assert_array_equal(heard, waves[0].astype(np.float32))


def test_samples_that_cannot_be_are_told(tmp_path):
    wave = tone(2)
    wave[[100, 200]], wave[300] = np.nan, np.inf
    path, pipeline = write_sound(tmp_path / "a.wav", [wave], 16000), open_pipeline("none", "logmel")
    heard = sound(path, 8000, Damage())
    assert np.isfinite(heard).all()
    assert rms(heard[400:-400] - tone(2, rate=8000)[400:-400]) < 1e-3
    assert pipeline.extract(path).remarks == ("3 samples of sound not finite, taken as silence",)
    loud = write_sound(tmp_path / "b.wav", [32767 * tone(2)], 16000)
    assert pipeline.extract(loud).remarks == ("sound of up to 16,384 times full scale",)


# --- the clock ------------------------------------------------------------------------------------


def loud_by_second(heard, rate):
    """The peaks of whole seconds."""
    return np.abs(heard[: len(heard) // rate * rate]).reshape(-1, rate).max(1)


def remuxed(source, target, keep):
    """Copy the packets of a file that are kept, from their kind and their time in seconds."""
    with av.open(str(source)) as inside, av.open(str(target), "w") as out:
        streams = {stream.index: out.add_stream_from_template(stream) for stream in inside.streams}
        for packet in inside.demux():
            if packet.size and keep(packet.stream.type, float(packet.pts * packet.time_base)):
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
    return target


@pytest.mark.parametrize(("begin", "codec", "form"), [(0.5, "pcm_s16le", "s16"), (0.3, "aac", "fltp")])
def test_sound_that_begins_after_the_pictures_begins_with_silence(tmp_path, begin, codec, form):
    path = write_sound(tmp_path / "a.mkv", [tone(2)], 16000, codec, form, pictures=3, begin=begin)
    heard, place = sound(path, 16000, Damage()), round(begin * 16000)
    assert rms(heard[: place - 1024]) < 1e-3
    assert rms(heard[place : place + 32000] - tone(2)) < 0.01


@pytest.mark.parametrize("early", [0.3, 1.7])
def test_sound_before_the_first_picture_is_dropped(tmp_path, early):
    whole = write_sound(tmp_path / "whole.mkv", [tone(4)], 16000, "pcm_s16le", "s16", pictures=4)
    keep = lambda kind, at: kind == "audio" or at >= early  # noqa: E731
    heard = sound(remuxed(whole, tmp_path / "a.mkv", keep), 16000, Damage())
    assert len(heard) == round((4 - early) * 16000)
    assert rms(heard - tone(4)[-len(heard) :]) < 1e-3


@pytest.mark.parametrize(("codec", "form", "ending"), [("aac", "fltp", "ts"), ("mp2", "s16", "mpg")])
def test_lost_packets_are_a_silent_gap(tmp_path, codec, form, ending):
    """A packet lasts less than 30 ms: what follows one that is lost stays at its place, too."""
    wave = tone(4, rate=44100)
    whole = write_sound(tmp_path / f"whole.{ending}", [wave] * 2, 44100, codec, form, pictures=4)
    expected = sound(whole, 44100, Damage())
    with av.open(str(whole)) as container:
        first = min(float(packet.pts * packet.time_base) for packet in container.demux(video=0) if packet.size)
    keep = lambda kind, at: kind == "video" or not (1.0 < at - first < 1.03 or 2 < at - first < 2.6)  # noqa: E731
    heard = sound(remuxed(whole, tmp_path / f"a.{ending}", keep), 44100, Damage())
    assert len(heard) == len(expected)
    kept = np.r_[5000:43000, 48000:87000, 117000:170000]
    assert rms(heard[kept] - expected[kept]) < 1e-3
    assert rms(heard[90500:113000]) == 0


def test_a_recording_cut_anywhere_is_heard_from_its_first_picture_on(tmp_path):
    """Against a plain decoding of its frames, placed by their time stamps."""
    rate, path = 16000, tmp_path / "cut.ts"
    wave = tone(12, rate=rate) * np.linspace(0, 1, 12 * rate, dtype=np.float32)
    whole = write_sound(tmp_path / "a.ts", [wave], rate, "mp2", "s16", pictures=12).read_bytes()
    for share in (0.15, 0.4):
        begin = int(len(whole) // 188 * share) * 188
        path.write_bytes(whole[: 3 * 188] + whole[begin:])
        with av.open(str(path)) as container:
            first = next(container.decode(video=0))
            start = first.pts * first.time_base
        expected = np.zeros(12 * rate, np.float32)
        with av.open(str(path)) as container:
            for frame in container.decode(audio=0):
                place = round((frame.pts * frame.time_base - start) * rate)
                values = frame.to_ndarray()[0] / np.float32(2**15)
                if place >= 0:
                    expected[place : place + len(values)] = values
        heard = sound(path, rate, Damage())
        assert rms(heard[2000:] - expected[2000 : len(heard)]) < 1e-3


JOINED = [
    ("pcm_s16le", "s16", "wav"),
    ("pcm_s16be", "s16", "aiff"),
    ("wavpack", "s32p", "wv"),
    ("flac", "s16", "flac"),
    ("flac", "s16", "ogg"),
    ("libopus", "flt", "ogg"),
    ("libmp3lame", "fltp", "mp3"),
    ("aac", "fltp", "aac"),
    ("mp2", "s16", "ts"),
    ("mp2", "s16", "mpg"),
    ("aac", "fltp", "mkv"),
    ("aac", "fltp", "m4a"),
    ("aac", "fltp", "flv"),
]


@pytest.mark.parametrize(("codec", "form", "ending"), JOINED)
def test_joined_recordings_follow_each_other(tmp_path, codec, form, ending):
    """The second, of another number of channels, is behind the end of the first, whether or not FFmpeg reads on."""
    wave, pipeline = [tone(2, 440, 48000)] * 2, open_pipeline("none", "logmel")
    first = write_sound(tmp_path / f"a.{ending}", wave, 48000, codec, form)
    second = write_sound(tmp_path / f"b.{ending}", [tone(2, 880, 48000)], 48000, codec, form)
    joined = tmp_path / f"joined.{ending}"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    heard = sound(joined, 16000, Damage())
    assert 4 <= len(heard) / 16000 < 4.12  # of lossy codecs with what they fill up
    loudest = [np.abs(np.fft.rfft(heard[begin : begin + 16000])).argmax() for begin in (4000, 12000, 36000, 46000)]
    np.testing.assert_allclose(loudest, [440, 440, 880, 880], atol=1)
    remarks = pipeline.extract(joined).remarks
    if ending not in ("mp3", "aac"):  # which have no clock
        assert "its clock starts anew 1 time, and goes on at the end of what came before" in remarks


@pytest.mark.parametrize("ending", ["ogg", "webm"])
def test_a_decoder_does_not_go_on_from_the_recording_before(tmp_path, ending):
    first = write_sound(tmp_path / f"a.{ending}", [tone(2, 440, 48000)], 48000, "libopus", "flt")
    second = write_sound(tmp_path / f"b.{ending}", [tone(2, 880, 48000)], 48000, "libopus", "flt")
    joined, alone = tmp_path / f"joined.{ending}", sound(second, 48000, Damage())
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    np.testing.assert_allclose(sound(joined, 48000, Damage())[-len(alone) :], alone, atol=1e-6)


@pytest.mark.parametrize("ending", ["flv", "mp4", "mov", "wmv"])
def test_a_recording_with_pictures_that_is_not_read_is_told(tmp_path, ending):
    codec = {"flv": "flv1", "wmv": "wmv2"}.get(ending, "mpeg4")
    for name, seconds in (("a", 2), ("b", 3)):
        write_clip(tmp_path / f"{name}.{ending}", seconds, codec=codec)
    joined = tmp_path / f"joined.{ending}"
    joined.write_bytes(b"".join((tmp_path / f"{name}.{ending}").read_bytes() for name in "ab"))
    rest = (tmp_path / f"b.{ending}").stat().st_size
    for path, seconds, remarks in (
        (joined, 2, [f"its last {rest:,} bytes are another recording, which is not read; take them apart"]),
        (tmp_path / f"b.{ending}", 3, []),
    ):
        damage = Damage()
        assert len(list(pictures(path, 16, damage))) == seconds
        assert list(damage.remarks()) == remarks
