"""YAMNet, Google's network of 521 kinds of sound: from a second of sound to the 1024 values before its classifier."""

from __future__ import annotations

from reeltag.data.video.decode import Samples
from reeltag.data.video.extractors import mel
from reeltag.data.video.extractors.extractor import Extractor
from reeltag.data.video.extractors.onnx_graph import graph_hash
from reeltag.data.video.extractors.settings import FileSettings, check_reference, parse_settings
from reeltag.data.video.extractors.sound_network import SoundNetwork

WIDTH = 1024
# Nine values in ten are 0, which code 4 stands for, and one in ten thousand exceeds 2.95, the last code.
OFFSET, SCALE = 1.45, 4 / 3


def open_yamnet(rest: str) -> Extractor[Samples]:
    """Open YAMNet.

    Args:
        rest: PATH?key=value&…, the path that of a TFLite or ONNX file.

    Raises:
        UsageError: the file is missing, or is not that of a YAMNet.
    """
    path, settings = parse_settings("yamnet", rest, FileSettings, {"offset": OFFSET, "scale": SCALE})
    network = SoundNetwork(path, WIDTH, mel.yamnet_patches)
    check_reference(path, settings.reference, network, "that it is the same network")
    identity = {"name": "yamnet", "weights": graph_hash(path), "settings": settings.identity()}
    name = f"yamnet:{path.name}"
    offset, scale = settings.offset, settings.scale
    calibrated = (offset, scale) == (OFFSET, SCALE)
    return Extractor(name, WIDTH, (mel.RATE,), identity, offset, scale, network, calibrated=calibrated)
