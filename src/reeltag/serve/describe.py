"""Description of `/predict` in `/openapi.json`."""

from __future__ import annotations

from typing import Any

from reeltag.inference.timeline import Tagged
from reeltag.serve.answers import Fault, TaggedVideos
from reeltag.serve.requests import ARRAY, JSON, RECORDS, VIDEO

_TOP = {"type": "integer", "minimum": 1, "default": 20, "description": "number of tags"}
_TIMELINE = {"type": "boolean", "default": False, "description": "also return scores over time"}
_THRESHOLDS = {"type": "boolean", "default": False, "description": "only tags that reach the model's thresholds"}
_OPTIONS = {"top": _TOP, "timeline": _TIMELINE, "thresholds": _THRESHOLDS}
_VIDEO = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "frames": {
            "type": "array",
            "items": {"type": "array", "items": {"type": "number"}},
            "description": "T lists of D numbers; frames beyond the model's limit are left out",
        },
        "frames_base64": {
            "type": "string",
            "description": "instead of frames: T × D values in the model's data type, little-endian, frame by frame",
        },
        "shape": {"type": "array", "items": {"type": "integer"}, "description": "[T, D] of frames_base64"},
        "id": {"type": "string", "default": ""},
        **_OPTIONS,
    },
}
_BYTES = {"schema": {"type": "string", "format": "binary"}}
_BODY = {JSON: {"schema": _VIDEO}} | dict.fromkeys((ARRAY, *RECORDS, VIDEO, "audio/*"), _BYTES)
_QUERY = [{"name": name, "in": "query", "schema": schema} for name, schema in _OPTIONS.items()]
_FAULTS = {
    400: "the body is malformed",
    408: "the body did not arrive in time",
    413: "the request or its answer is too large",
    415: "unknown content type, or a video for a model whose feature extractors are unknown",
    422: "the scores are not finite, or the video crashed the process that decodes videos",
    501: "videos need a package or an extractor that the service does not have",
    503: "too many requests in progress; try again later",
    504: "the request timed out",
}
PREDICT: dict[str, Any] = {
    "summary": "Tag one video, as JSON, as an array or as a video file, or several, as TFRecords",
    "description": "Options are keys of a JSON body, and query parameters with any other body.",
    "openapi_extra": {"requestBody": {"required": True, "content": _BODY}, "parameters": _QUERY},
    "response_model": None,
    "responses": {
        200: {"model": Tagged | TaggedVideos, "description": "tags of the video, or of every record"},
        **{status: {"model": Fault, "description": text} for status, text in _FAULTS.items()},
    },
}
