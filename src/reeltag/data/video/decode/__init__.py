"""Decode video files to one picture and one second of sound for each second.

Second k of a video begins k seconds after the first picture that decodes. Its picture is the frame displayed at
k + 0.5; its sound is that of [k, k + 1). The length of a video is the number of seconds that have a picture at their
middle, at least one.
"""

from reeltag.data.video.decode.audio_stream import Samples, sound
from reeltag.data.video.decode.container import STALLED_SECONDS, Damage, Media, probe
from reeltag.data.video.decode.process import Decoder, DecoderCrashError, DecoderProcess
from reeltag.data.video.decode.video_stream import MAX_SECONDS, Picture, pictures

__all__ = [
    "MAX_SECONDS",
    "STALLED_SECONDS",
    "Damage",
    "Decoder",
    "DecoderCrashError",
    "DecoderProcess",
    "Media",
    "Picture",
    "Samples",
    "pictures",
    "probe",
    "sound",
]
