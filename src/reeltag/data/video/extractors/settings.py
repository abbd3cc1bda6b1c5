"""Settings of extractors that read a file, `PATH?key=value&…`, and checks with plain and with reference inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl, urlencode

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from reeltag.core.errors import UsageError
from reeltag.core.validation import describe_fault
from reeltag.data.pca import Values
from reeltag.data.video.decode import Samples

TOLERANCE = 1e-3  # largest difference from reference values, relative to the largest value


def _numbers(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    parts = text.split(",")
    return tuple(parts * 3 if len(parts) == 1 else parts)


Rgb = Annotated[tuple[float, float, float], BeforeValidator(_numbers)]
_Above0 = Annotated[float, Field(gt=0)]
RgbScale = Annotated[tuple[_Above0, _Above0, _Above0], BeforeValidator(_numbers)]


class ScaleSettings(BaseModel):
    """Keys of every extractor: the scale (x - offset) · scale of 8-bit codes without a PCA."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    offset: float = 0.0
    scale: float = Field(1.0, gt=0)


class FileSettings(ScaleSettings):
    """Keys of every extractor that reads a file."""

    reference: Path | None = Field(
        None, description=".npz file with `inputs` and the `values` that the model has to return for them"
    )

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide values, as JSON; given as keys they make the same extractor."""
        return self.model_dump(mode="json", exclude={"offset", "scale", "reference"})


Keys = TypeVar("Keys", bound=ScaleSettings)


def parse_settings(
    name: str, rest: str, kind: type[Keys], defaults: Mapping[str, Any] | None = None
) -> tuple[Path, Keys]:
    """Parse the text after an extractor's name.

    Args:
        name: name of the extractor, for messages.
        rest: PATH?key=value&….
        kind: settings that it has.
        defaults: values of keys that are not given, where they differ from those of `kind`.

    Returns:
        The path and the settings.

    Raises:
        UsageError: no path is given, or a key is unknown or has a wrong value.
    """
    path, _, query = rest.partition("?")
    if not path:
        what = "names no file; give"
        raise UsageError(f"{name}: {what} {name}:PATH, with ?key=value&… where its settings are not the defaults")
    return Path(path), _parse_keys(path, query, kind, defaults or {})


def parse_scale(name: str, rest: str, offset: float, scale: float) -> ScaleSettings:
    """Parse the text after the name of an extractor that reads no file, `?offset=…&scale=…` or nothing.

    Args:
        name: name of the extractor, for messages.
        rest: the text.
        offset: offset if it is not given.
        scale: scale if it is not given.

    Raises:
        UsageError: a path is given, or a key is unknown or has a wrong value.
    """
    path, _, query = rest.partition("?")
    if path:
        raise UsageError(f"{name}: reads no file, but {path!r} was given")
    return _parse_keys(name, query, ScaleSettings, {"offset": offset, "scale": scale})


def with_scale(name: str, offset: float, scale: float) -> str:
    """Return the text that names an extractor, with these settings in place of the offset and scale that it may have.

    Args:
        name: name of an extractor with its settings, such as `onnx:PATH?size=224`.
        offset: value of the key `offset`.
        scale: value of the key `scale`.
    """
    head, _, query = name.partition("?")
    keys = dict(parse_qsl(query, keep_blank_values=True)) | {"offset": str(offset), "scale": str(scale)}
    return f"{head}?{urlencode(keys, safe='/,:')}"


def names_scale(name: str) -> bool:
    """Return True if the text that names an extractor has an offset or scale among its settings."""
    return not {"offset", "scale"}.isdisjoint(dict(parse_qsl(name.partition("?")[2], keep_blank_values=True)))


def _parse_keys(place: str, query: str, kind: type[Keys], defaults: Mapping[str, Any]) -> Keys:
    try:
        return kind.model_validate({**defaults, **dict(parse_qsl(query, keep_blank_values=True))})
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {describe_fault(fault)}" for fault in error.errors())
        raise UsageError(f"{place}: {faults}; keys are {', '.join(kind.model_fields)}") from error


def refuse_normalisation(path: Path, settings: FileSettings) -> None:
    """Refuse a mean or standard deviation for a network that reads pixels as they are.

    Args:
        path: file of the network, for messages.
        settings: settings that were given.

    Raises:
        UsageError: they have one.
    """
    if given := sorted(settings.model_fields_set & {"mean", "std"}):
        raise UsageError(f"{path}: reads uint8 pixels as they are; leave out {' and '.join(given)}")


def as_query(settings: Mapping[str, Any]) -> str:
    """Return settings as the text that follows an extractor's path, `key=value&…`; those that are None are left out.

    Args:
        settings: settings of an extractor, as `FileSettings.identity` returns them.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    texts = {key: ",".join(map(str, value)) if isinstance(value, list) else value for key, value in given.items()}
    return urlencode(texts, safe=",")


def tone(rate: int) -> Samples:
    """Return a second of a tone at full scale, [1, rate] float32."""
    return np.sin(np.arange(rate) / 4, dtype=np.float32)[None]


def probe_width(path: Path, values: Callable[[Any], Values], probe: Any, what: str) -> int:
    """Return the width of an extractor's vectors, from one input that every extractor has to read.

    Args:
        path: file of the extractor, for messages.
        values: function from inputs to values [T, width].
        probe: the input, [1, …].
        what: the input in words, for messages.

    Raises:
        UsageError: its values are NaN or infinite.
    """
    with np.errstate(all="ignore"):  # the message says it
        found = values(probe)
    if not np.isfinite(found).all():
        raise UsageError(f"{path}: gives NaN or infinite values for {what}; check its settings, or export it again")
    return int(found.shape[1])


def check_reference(path: Path, reference: Path | None, values: Callable[[Any], Any], advice: str) -> None:
    """Compare an extractor with reference values, if a file of them is given.

    Args:
        path: file of the extractor, for messages.
        reference: .npz file with `inputs` and `values`.
        values: function from inputs to values.
        advice: settings to check if the values differ.

    Raises:
        UsageError: the values differ by more than 0.001 of the largest, or the file cannot be read.
    """
    if reference is None:
        return
    try:
        with np.load(reference, allow_pickle=False) as file:
            inputs, expected = file["inputs"], file["values"]
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{reference}: no .npz file with `inputs` and `values` ({error})") from error
    found = values(inputs)
    if found.shape != expected.shape:
        raise UsageError(f"{reference}: has values {list(expected.shape)}, and {path} gives {list(found.shape)}")
    difference = float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-12))
    if not difference <= TOLERANCE:
        what = f"differs from its reference by {difference:.1e} of the largest value, above {TOLERANCE:g}"
        raise UsageError(f"{path}: {what}; check {advice}")
