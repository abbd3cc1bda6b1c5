"""What `/openapi.json` says of `/predict`."""

from __future__ import annotations

from typing import Any

from reeltag.inference.timeline import Tagged
from reeltag.serve.answers import Fault, TaggedVideos
from reeltag.serve.requests import JSON, RECORDS, VIDEO

_TOP = {"type": "integer", "minimum": 1, "default": 20, "description": "how many tags"}
_TIMELINE = {"type": "boolean", "default": False, "description": "scores over time too"}
_VIDEO = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "frames": {
            "type": "array",
            "items": {"type": "array", "items": {"type": "number"}},
            "description": "T lists of D numbers; those past the model's limit are left out",
        },
        "frames_base64": {
            "type": "string",
            "description": "instead of frames: T × D values in the model's type, little-endian, frame after frame",
        },
        "shape": {"type": "array", "items": {"type": "integer"}, "description": "[T, D] of frames_base64"},
        "id": {"type": "string", "default": ""},
        "top": _TOP,
        "timeline": _TIMELINE,
    },
}
_BYTES = {"schema": {"type": "string", "format": "binary"}}
_BODY = {JSON: {"schema": _VIDEO}} | dict.fromkeys((*RECORDS, VIDEO, "audio/*"), _BYTES)
_QUERY = [{"name": name, "in": "query", "schema": schema} for name, schema in (("top", _TOP), ("timeline", _TIMELINE))]
_FAULTS = {
    400: "the body is malformed",
    408: "the body came too slowly",
    413: "too large",
    415: "another content type, or a video for a model that does not know what makes its features",
    422: "the model computes no number for these values, or the video ended the process that read it",
    501: "a video, and what reads it is missing here",
    503: "too many requests at once",
    504: "not answered in time",
}
PREDICT: dict[str, Any] = {
    "summary": "Tag one video, as JSON or as a video file, or several, as TFRecords",
    "description": "The options stand in a JSON body, and in the address where the body is another.",
    "openapi_extra": {"requestBody": {"required": True, "content": _BODY}, "parameters": _QUERY},
    "response_model": None,
    "responses": {
        200: {"model": Tagged | TaggedVideos, "description": "one video's tags, or those of all records"},
        **{status: {"model": Fault, "description": text} for status, text in _FAULTS.items()},
    },
}
