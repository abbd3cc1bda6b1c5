"""Parse and check the body of a request before it is queued. Every fault is a `RequestError`."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from tokenize import TokenError
from typing import Any

import numpy as np

from reeltag.core.errors import DataError, RequestError
from reeltag.data.formats.example import MAX_VALUE, FrameArray, Video, is_computable
from reeltag.data.formats.kinds import HEAD, TFRECORD, recognise_content
from reeltag.data.schema import Schema
from reeltag.data.shards import read_shard_bytes
from reeltag.data.sources.conversion import to_feature
from reeltag.inference.metrics.video_metrics import TOP_K
from reeltag.serve.limits import Limits

RECORDS = ("application/x-tfrecord", "application/octet-stream")
ARRAY = "application/x-npy"
JSON = "application/json"
VIDEO = "video/*"  # stands for audio/* too: only decoding a file shows what it holds
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_OPTIONS = ("top", "timeline", "thresholds")
_JSON_KEYS = ("frames", "frames_base64", "shape", "id", *_OPTIONS)
_JSON_VALUE, _JSON_REST = 32, 64_000  # maximum characters of a number, and of everything else


@dataclass(frozen=True)
class Wanted:
    """Parsed request.

    Attributes:
        videos: at least one.
        top: number of tags per video.
        timeline: also tag segments.
        thresholds: only tags that reach the model's thresholds.
    """

    videos: list[Video]
    top: int
    timeline: bool
    thresholds: bool


def media_type(content_type: str) -> str:
    """Return the media type without its parameters; `VIDEO` for all of video/* and audio/*.

    Raises:
        RequestError: the service does not read this type.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind.partition("/")[0] in ("video", "audio"):
        return VIDEO
    if kind not in (JSON, ARRAY, *RECORDS):
        known = f"{JSON}, frames as {ARRAY}, TFRecords as {' or '.join(RECORDS)}, or a file of video/* or audio/*"
        raise RequestError(415, f"content type {kind!r}: send {known}")
    return kind


def most_bytes(kind: str, schema: Schema, limits: Limits) -> int:
    """Return the maximum size of a body in bytes; JSON holds a single video, so its limit is lower."""
    if kind != JSON:
        return limits.max_body
    return min(limits.max_body, _JSON_VALUE * schema.max_frames * schema.width + _JSON_REST)


def too_large(kind: str, limit: int) -> RequestError:
    """Return the error for a body of more bytes than `most_bytes` allows.

    Args:
        kind: media type of the body, as `media_type` returns it.
        limit: the maximum.
    """
    if kind == JSON:
        step = "send TFRecords instead of JSON"
    else:
        smaller = "a shorter or smaller video" if kind == VIDEO else "fewer videos"
        step = f"send {smaller}, or raise --max-body-mb of the service"
    return RequestError(413, f"the body has more than {limit:,} bytes; {step}")


def parse(kind: str, query: Mapping[str, str], body: bytes, schema: Schema, limits: Limits) -> Wanted:
    """Parse a request of JSON, of an array in NumPy's format, or of TFRecords.

    Args:
        kind: media type of the body, as `media_type` returns it.
        query: query parameters, the options of any body but JSON, which holds its own.
        body: the complete body.
        schema: schema of the videos.
        limits: limits of the service.

    Raises:
        RequestError: the request is invalid or too large.
    """
    if kind == JSON:
        if query:
            raise RequestError(400, f"{next(iter(query))!r} is a query parameter; with JSON put it in the body")
        return _from_json(body, schema, limits)
    if not body:
        what = "the frames of a video" if kind == ARRAY else "one or several TFRecords"
        raise RequestError(400, f"the body is empty; send {what}")
    if kind == ARRAY:
        return options(query, schema, [_video("", _frames_of_array(body, schema), schema, limits)])
    return options(query, schema, list(_records(body, schema, limits)))


def options(query: Mapping[str, str], schema: Schema, videos: list[Video]) -> Wanted:
    """Combine videos with the options in the query.

    Raises:
        RequestError: an option is unknown or its value invalid.
    """
    given: dict[str, Any] = {key: _query_value(value) for key, value in query.items()}
    _refuse_unknown(given, _OPTIONS)
    return _wanted(given, schema, videos)


def _wanted(given: Mapping[str, Any], schema: Schema, videos: list[Video]) -> Wanted:
    return Wanted(videos, _top(given, schema), _flag(given, "timeline"), _flag(given, "thresholds"))


def _records(body: bytes, schema: Schema, limits: Limits) -> Iterator[Video]:
    frames = 0
    try:
        for video in read_shard_bytes(body, schema):
            frames += video.length
            if frames > limits.max_frames:
                reason = f"the videos have more than {limits.max_frames:,} frames together; send fewer at a time"
                raise RequestError(413, reason)
            yield video
    except DataError as error:
        is_shard = recognise_content(body[:HEAD]) == TFRECORD
        step = "" if is_shard else "; if it is a video, send it with its type, such as Content-Type: video/mp4"
        raise RequestError(400, f"{error}{step}") from error


def _query_value(text: str) -> object:
    """Convert the text of a query parameter to the value that JSON would hold."""
    if text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    return {"true": True, "false": False}.get(text, text)


def _refuse_unknown(given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in given:
        if key not in known:
            raise RequestError(400, f"{_short(key)} is not a key of a request; the keys are {', '.join(known)}")


def _top(given: Mapping[str, Any], schema: Schema) -> int:
    top = given.get("top", min(TOP_K, schema.classes))
    if type(top) is not int or not 1 <= top <= schema.classes:
        raise RequestError(400, f"top is {_short(top)}: must be a whole number from 1 to {schema.classes}")
    return top


def _flag(given: Mapping[str, Any], key: str) -> bool:
    value = given.get(key, False)
    if type(value) is not bool:
        raise RequestError(400, f"{key} is {_short(value)}: must be true or false")
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _video(name: str, frames: FrameArray, schema: Schema, limits: Limits) -> Video:
    """Return the video of frames [T, D] whose features are beside each other."""
    if schema.level == "video" and len(frames) != 1:
        raise RequestError(400, f"{len(frames)} frames: this model reads video-level features, one vector per video")
    cut = max(0, len(frames) - schema.max_frames)
    frames = frames[: schema.max_frames]
    if len(frames) > limits.max_frames:
        raise RequestError(413, f"the video has more than {limits.max_frames:,} frames; send fewer")
    features = np.split(frames, np.cumsum(schema.widths)[:-1], axis=1)
    return Video(name, None, tuple(features), cut)


def _frames_of_array(body: bytes, schema: Schema) -> FrameArray:
    """Read frames [T, D] in NumPy's format; the header is checked before memory of the size that it tells is taken."""
    file = BytesIO(body)
    try:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"version {version[0]}.{version[1]}")
        shape, _, dtype = _HEADERS[version](file)
        if len(body) - file.tell() != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{len(body) - file.tell():,} bytes, not those of {list(shape)} {dtype}")
        values = np.load(BytesIO(body), allow_pickle=False)
        values = to_feature(values[None] if values.ndim == 1 else values, "frames", "the body")
    except DataError as error:
        raise RequestError(400, str(error)) from error
    except (ValueError, TypeError, SyntaxError, TokenError, RecursionError) as error:
        raise RequestError(400, f"the body is not an array as numpy.save writes it: {error}") from error
    if values.shape[1] != schema.width or values.dtype != schema.dtype:
        found = f"{list(values.shape)} {values.dtype}"
        raise RequestError(400, f"the array is {found}; this model reads [T, {schema.width}] {schema.dtype}")
    return values


# --- JSON -----------------------------------------------------------------------------------------


def _from_json(body: bytes, schema: Schema, limits: Limits) -> Wanted:
    given = _load(body)
    _refuse_unknown(given, _JSON_KEYS)
    name = given.get("id", "")
    if type(name) is not str:
        raise RequestError(400, f"id is {_short(name)}: must be a string")
    return _wanted(given, schema, [_video(name, _frames(given, schema), schema, limits)])


def _load(body: bytes) -> dict[str, Any]:
    try:
        given = json.loads(body.decode())
    except UnicodeDecodeError as error:
        raise RequestError(400, f"the body is not UTF-8: byte {error.start}") from error
    except RecursionError as error:
        raise RequestError(400, "the body is nested too deeply; frames are a list of lists of numbers") from error
    except json.JSONDecodeError as error:
        raise RequestError(400, f"the body is not JSON: {error}") from error
    except ValueError as error:  # Python refuses to convert numbers of thousands of digits
        raise RequestError(400, "the body holds a number of thousands of digits") from error
    if not isinstance(given, dict):
        raise RequestError(400, 'the body must be an object, such as {"frames": [[0, 255, …], …]}')
    return given


def _frames(given: Mapping[str, Any], schema: Schema) -> FrameArray:
    """Return the frames [T, D] in the schema's data type."""
    if ("frames" in given) == ("frames_base64" in given):
        raise RequestError(400, "give the video as one of frames, a list of lists, and frames_base64, with its shape")
    if "frames" not in given:
        return _frames_of_base64(given["frames_base64"], given.get("shape"), schema)
    if "shape" in given:
        raise RequestError(400, "shape goes with frames_base64; a list of lists has its own")
    return _frames_of_lists(given["frames"], schema)


def _frames_of_lists(rows: object, schema: Schema) -> FrameArray:
    if type(rows) is not list or not rows:
        raise RequestError(400, "frames must be a list of at least one frame, each a list of numbers")
    for number, row in enumerate(rows):
        if type(row) is not list:
            raise RequestError(400, f"frame {number} is {_short(row)}: must be a list of {schema.width} numbers")
        if len(row) != schema.width:
            raise RequestError(400, f"frame {number} has {len(row)} values; this model reads {schema.width}")
    if not set(map(type, chain.from_iterable(rows))) <= {int, float}:
        number = next(n for n, row in enumerate(rows) if not set(map(type, row)) <= {int, float})
        raise RequestError(400, f"frame {number} holds something other than numbers")
    try:
        values = np.array(rows, np.float64)
    except OverflowError as error:
        raise RequestError(400, "frames hold a number beyond all floating-point numbers") from error
    if schema.dtype == "uint8":
        wrong = ~((values >= 0) & (values <= 255) & (values == np.floor(values)))
        expected = "whole numbers from 0 to 255"
    else:
        wrong = ~(np.abs(values) <= MAX_VALUE)
        expected = f"numbers from {-MAX_VALUE:g} to {MAX_VALUE:g}"
    if wrong.any():
        frame, position = np.argwhere(wrong)[0].tolist()
        raise RequestError(
            400, f"frame {frame}, value {position} is {values[frame, position]}: this model reads {expected}"
        )
    return values.astype(schema.dtype)


def _frames_of_base64(text: object, shape: object, schema: Schema) -> FrameArray:
    if type(shape) is not list or len(shape) != 2 or not all(type(n) is int for n in shape) or shape[0] < 1:
        raise RequestError(400, f"shape is {_short(shape)}: must be [T, {schema.width}], with at least one frame")
    if shape[1] != schema.width:
        raise RequestError(400, f"shape is {_short(shape)}; this model reads {schema.width} values per frame")
    if type(text) is not str:
        raise RequestError(400, "frames_base64 must be a string")
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise RequestError(400, f"frames_base64 is not base64: {error}") from error
    dtype = np.dtype(schema.dtype).newbyteorder("<")
    if len(content) != shape[0] * shape[1] * dtype.itemsize:
        raise RequestError(
            400, f"frames_base64 holds {len(content):,} bytes, not those of {shape[0]} × {shape[1]} {schema.dtype}"
        )
    frames = np.frombuffer(content, dtype).reshape(shape)
    if not is_computable(frames):
        raise RequestError(400, f"frames_base64 holds NaN or infinite values, or some beyond ±{MAX_VALUE:g}")
    return frames
