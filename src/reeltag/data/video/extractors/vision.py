"""CLIP, SigLIP and DINOv2 as ONNX graphs, with the preprocessing that their export describes.

An export is what `optimum-cli export onnx` writes and repositories of transformers.js hold: a graph with
`preprocessor_config.json` beside it, or beside its folder `onnx`. Models of open_clip have `open_clip_config.json`.

The vectors are divided by their Euclidean norm, as CLIP and SigLIP compare them. So they have one scale whatever the
network: most values of a unit vector of width D lie within three times 1 / √D.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reeltag.core.errors import UsageError
from reeltag.core.validation import describe_fault
from reeltag.data.pca import LIMIT, Values
from reeltag.data.video.decode import Picture
from reeltag.data.video.extractors.extractor import Extractor
from reeltag.data.video.extractors.onnx_graph import graph_hash, open_session, run_session
from reeltag.data.video.extractors.settings import FileSettings, Rgb, RgbScale, check_reference, parse_settings

# For each family: the values of `model_type` in config.json.
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "clip": ("clip", "clip_vision_model"),
    "siglip": ("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model"),
    "dinov2": ("dinov2", "dinov2_with_registers"),
}
_GRAPHS = ("vision_model.onnx", "model.onnx", "onnx/vision_model.onnx", "onnx/model.onnx")
_FLOATS: Mapping[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_RESAMPLING: Mapping[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}  # as Pillow numbers them
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class VisionSettings(FileSettings):
    """Keys of CLIP, SigLIP and DINOv2; without `scale` it is the one of unit vectors of their width."""

    output: str | None = Field(None, description="name of the output that holds the vectors; found by default")


@dataclass(frozen=True)
class Preprocessing:
    """Resizing, cropping and normalisation of pictures.

    Attributes:
        size: height and width that the network reads.
        edge: length to which the shorter side is resized before `size` is cut out of the middle; None if pictures are
            resized to `size` without keeping their aspect ratio.
        resampling: kernel, antialiased as in Pillow.
        middle: where an odd margin is cut: `floor` as transformers does, or `round` as torchvision and open_clip do.
        factor: what pixels are multiplied by, before the normalisation.
        mean: subtracted from each channel.
        std: what the difference is divided by.
    """

    size: tuple[int, int]
    edge: int | None
    resampling: Literal["bilinear", "bicubic"]
    middle: Literal["floor", "round"]
    factor: float
    mean: Rgb
    std: Rgb

    def prepare(self, picture: Picture) -> Picture:
        """Resize and crop one picture, [H, W, 3] of any size, to [height, width, 3]."""
        shape = self._resized_shape(picture.shape[0], picture.shape[1])
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None]
        if shape != picture.shape[:2]:
            pixels = torch.nn.functional.interpolate(pixels, shape, mode=self.resampling, antialias=True)
        margins = (shape[0] - self.size[0], shape[1] - self.size[1])
        top, left = (round(side / 2) if self.middle == "round" else side // 2 for side in margins)
        cut = pixels[0, :, top : top + self.size[0], left : left + self.size[1]]
        return np.ascontiguousarray(cut.permute(1, 2, 0).numpy())

    def _resized_shape(self, height: int, width: int) -> tuple[int, int]:
        if self.edge is None:
            return self.size
        shorter = min(height, width)
        return int(self.edge * height / shorter), int(self.edge * width / shorter)

    def normalise(self, pictures: Picture) -> npt.NDArray[np.float32]:
        """Normalise pictures [N, height, width, 3] to the network's input [N, 3, height, width]."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        x = (pictures.astype(np.float32) * np.float32(self.factor) - mean) / std
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


class VisionModel:
    """Network from prepared pictures [T, height, width, 3] uint8 to unit vectors [T, width] float32.

    Args:
        path: the graph.
        family: `clip`, `siglip` or `dinov2`.
        preprocessing: what its pictures go through.
        output: name of the output that holds the vectors; None to find it.

    Raises:
        UsageError: the graph cannot be opened, reads or gives something else, or contradicts its preprocessing.
    """

    def __init__(self, path: Path, family: str, preprocessing: Preprocessing, output: str | None) -> None:
        self.path, self.preprocessing = path, preprocessing
        self._session = open_session(path)
        pictures = [each for each in self._session.get_inputs() if each.type in _FLOATS and len(each.shape) == 4]
        if len(pictures) != 1 or (isinstance(pictures[0].shape[1], int) and pictures[0].shape[1] != 3):
            kinds = ", ".join(f"{each.name} {each.type} {each.shape}" for each in self._session.get_inputs())
            raise UsageError(f"{path}: reads {kinds}, not pictures, float [N, 3, H, W]; export the vision model")
        self._input = pictures[0]
        self._texts = {each.name: self._text(each) for each in self._session.get_inputs() if each is not self._input}
        self._refuse_other_size()
        self.output, self._first_token = self._found_output(family, output)
        self._one_by_one = isinstance(self._input.shape[0], int)
        black, grey = np.zeros((1, *preprocessing.size, 3), np.uint8), np.full((1, *preprocessing.size, 3), 128)
        self.width = self._probed(np.concatenate([black, grey.astype(np.uint8)]))

    def __call__(self, pictures: Picture) -> Values:
        """Return the unit vectors [T, width] of prepared pictures [T, height, width, 3]."""
        x = self.preprocessing.normalise(pictures).astype(_FLOATS[self._input.type])
        calls = [x[i : i + 1] for i in range(len(x))] if self._one_by_one else [x]
        vectors = np.concatenate([self._vectors(call) for call in calls])
        unit: Values = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return unit

    def _vectors(self, x: npt.NDArray[Any]) -> Values:
        (found,) = run_session(self.path, self._session, {self._input.name: x, **self._texts}, [self.output])
        vectors = np.asarray(found, np.float32)
        if self._first_token and vectors.ndim == 3:
            vectors = vectors[:, 0]
        if vectors.ndim != 2 or len(vectors) != len(x):
            what = f"output {self.output!r} is {list(found.shape)} for {len(x)} pictures"
            raise UsageError(f"{self.path}: {what}, not one vector each; name another with ?output=")
        return vectors

    def _probed(self, pictures: Picture) -> int:
        """Return the width of the vectors of two different pictures."""
        first, second = self(pictures)
        if not (np.isfinite(first).all() and np.isfinite(second).all()):
            raise UsageError(f"{self.path}: gives NaN or infinite values for plain pictures; export it again")
        if np.array_equal(first, second):
            what = f"output {self.output!r} is the same for different pictures"
            raise UsageError(f"{self.path}: {what}; name another with ?output=, or export it again")
        return len(first)

    def _text(self, wanted: Any) -> npt.NDArray[Any]:
        """Return the value of an input of the text half of a graph: one text of one token."""
        if wanted.name not in ("input_ids", "attention_mask", "position_ids") or wanted.type != "tensor(int64)":
            what = f"has the input {wanted.name} {wanted.type} {wanted.shape}"
            raise UsageError(f"{self.path}: {what} beside its pictures; export the vision model alone")
        shape = [side if isinstance(side, int) else 1 for side in wanted.shape]
        return np.full(shape, int(wanted.name == "attention_mask"), np.int64)

    def _refuse_other_size(self) -> None:
        sides = self._input.shape[2:]
        if any(isinstance(side, int) and side != own for side, own in zip(sides, self.preprocessing.size, strict=True)):
            theirs, ours = (" x ".join(map(str, size)) for size in (sides, self.preprocessing.size))
            what = f"reads pictures of {theirs}, and its preprocessing makes {ours}"
            raise UsageError(f"{self.path}: {what}; are the graph and the JSON file beside it of one model?")

    def _found_output(self, family: str, wanted: str | None) -> tuple[str, bool]:
        """Return the name of the output with the vectors, and True if it holds one for each token, the first of all."""
        ranks = {each.name: len(each.shape) for each in self._session.get_outputs()}
        if wanted is not None:
            if wanted not in ranks:
                raise UsageError(f"{self.path}: has no output {wanted!r}, but {', '.join(ranks)}; see ?output=")
            return wanted, family == "dinov2"
        for name in ("image_embeds", "pooler_output"):
            if name in ranks:
                return name, False
        if family == "dinov2" and "last_hidden_state" in ranks:
            return "last_hidden_state", True
        vectors = [name for name, rank in ranks.items() if rank == 2 and "logits" not in name]
        if len(vectors) != 1:
            what = f"has no output image_embeds or pooler_output, but {', '.join(ranks)}"
            raise UsageError(f"{self.path}: {what}; name the one with a vector a picture, ?output=")
        return vectors[0], False


def open_vision(rest: str, family: str) -> Extractor[Picture]:
    """Open a network of pictures with the preprocessing of its export.

    Args:
        rest: PATH?key=value&…, a graph or the folder of an export, with the keys of `VisionSettings`.
        family: `clip`, `siglip` or `dinov2`.

    Raises:
        UsageError: a file is missing, is of another family, or is not understood.
    """
    given, settings = parse_settings(family, rest, VisionSettings)
    path = _graph(given)
    _refuse_other_family(path, family)
    preprocessing = read_preprocessing(path)
    model = VisionModel(path, family, preprocessing, settings.output)

    def values(pictures: Picture) -> Values:
        return model(np.stack([preprocessing.prepare(picture) for picture in pictures]))

    check_reference(path, settings.reference, values, "output and the JSON file beside it")
    identity = {
        "name": family,
        "weights": graph_hash(path),
        "settings": settings.identity() | {"output": model.output},
        "preprocessing": json.loads(json.dumps(asdict(preprocessing))),  # lists, as files of a PCA give them back
    }
    scale = settings.scale if "scale" in settings.model_fields_set else unit_scale(model.width)
    return Extractor(
        f"{family}:{given.resolve().name}", model.width, preprocessing.size, identity, settings.offset, scale, model,
        prepare=preprocessing.prepare,
    )  # fmt: skip


def unit_scale(width: int) -> float:
    """Return the scale that maps three standard deviations of the values of unit vectors to the 8-bit range."""
    return LIMIT / 3 * math.sqrt(width)


def _graph(given: Path) -> Path:
    if not given.is_dir():
        return given
    found = [given / name for name in _GRAPHS if (given / name).is_file()]
    if not found:
        raise UsageError(f"{given}: holds none of {', '.join(_GRAPHS)}; give the path of the graph")
    return found[0]


def _refuse_other_family(path: Path, family: str) -> None:
    found = _beside(path, "config.json")
    if found is None:
        return
    kind = _read_json(found).get("model_type")
    if kind not in (None, *FAMILIES[family]):
        right = next((name for name, kinds in FAMILIES.items() if kind in kinds), None)
        step = f"give {right}:PATH" if right else "give onnx:PATH, with its preprocessing as ?key=value"
        raise UsageError(f"{found}: is of a model of the type {kind!r}, not of {family}; {step}")


# --- preprocessing --------------------------------------------------------------------------------


def read_preprocessing(path: Path) -> Preprocessing:
    """Read the preprocessing of a graph from the JSON file beside it or one folder above.

    Args:
        path: the graph.

    Raises:
        UsageError: there is no such file, or it describes what reeltag does not do.
    """
    names = ("preprocessor_config.json", "processor_config.json", "open_clip_config.json")
    for name in names:
        if found := _beside(path, name):
            content = _read_json(found)
            try:
                if name == "open_clip_config.json":
                    return OpenClipConfig.model_validate(content).preprocessing()
                return ImageProcessor.model_validate(content.get("image_processor", content)).preprocessing()
            except ValidationError as error:
                fault = error.errors()[0]
                where = ".".join(map(str, fault["loc"]))
                raise UsageError(f"{found}: {where}: {describe_fault(fault)}") from error
            except ValueError as error:
                raise UsageError(f"{found}: {error}; give onnx:PATH, with its preprocessing as ?key=value") from error
    raise UsageError(
        f"{path}: has none of {', '.join(names)} beside it; copy the one of its model, or export it with optimum-cli"
    )


class ImageProcessor(BaseModel):
    """`preprocessor_config.json`, as an image processor of transformers writes it.

    Keys that are not named here change nothing, except switches: `do_…` that is true.
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    size: int | dict[str, int]
    crop_size: int | dict[str, int] | None = None
    resample: int = 3
    image_mean: Rgb
    image_std: RgbScale
    rescale_factor: float = Field(1 / 255, gt=0)
    do_resize: bool | None = True
    do_center_crop: bool | None = None
    do_rescale: bool | None = True
    do_normalize: bool | None = True
    do_convert_rgb: bool | None = None  # ours are RGB

    def preprocessing(self) -> Preprocessing:
        """Return the preprocessing.

        Raises:
            ValueError: it has a step that reeltag does not do.
        """
        more = [key for key, value in (self.model_extra or {}).items() if key.startswith("do_") and value]
        if more or not self.do_resize:
            raise ValueError(f"{more[0]} is not supported" if more else "pictures are not resized to one size")
        if self.resample not in _RESAMPLING:
            raise ValueError(f"resample {self.resample} is not supported, only {', '.join(map(str, _RESAMPLING))}")
        crop = _sides(self.crop_size) if self.do_center_crop or self.do_center_crop is None else None
        edge = None
        if crop:
            edge = self.size if isinstance(self.size, int) else _only(self.size, "shortest_edge")
        size = crop if crop and edge else _sides(self.size)
        if size is None or (crop and not edge) or (edge and edge < max(size)):
            raise ValueError(f"size {self.size} with crop_size {self.crop_size} makes no pictures of one size")
        return Preprocessing(
            size=size,
            edge=edge,
            resampling=_RESAMPLING[self.resample],
            middle="floor",
            factor=self.rescale_factor if self.do_rescale else 1.0,
            mean=self.image_mean if self.do_normalize else (0.0, 0.0, 0.0),
            std=self.image_std if self.do_normalize else (1.0, 1.0, 1.0),
        )


def _sides(size: int | dict[str, int] | None) -> tuple[int, int] | None:
    """Return the height and width that a size names; None if it names another."""
    if isinstance(size, int):
        return size, size
    return (size["height"], size["width"]) if size and {*size} == {"height", "width"} else None


def _only(size: dict[str, int], key: str) -> int | None:
    return size[key] if {*size} == {key} else None


class _Vision(BaseModel):
    image_size: int | tuple[int, int] = 224


class _ModelConfig(BaseModel):
    vision_cfg: _Vision


class _PreprocessConfig(BaseModel):
    size: int | tuple[int, int] | None = None
    mean: Rgb = _CLIP_MEAN
    std: RgbScale = _CLIP_STD
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "squash"] = "shortest"


class OpenClipConfig(BaseModel):
    """`open_clip_config.json`, as open_clip writes it for the Hugging Face Hub."""

    model_cfg: _ModelConfig
    preprocess_cfg: _PreprocessConfig

    def preprocessing(self) -> Preprocessing:
        """Return the preprocessing.

        Raises:
            ValueError: it has a step that reeltag does not do.
        """
        config = self.preprocess_cfg
        side = config.size or self.model_cfg.vision_cfg.image_size
        size = (side, side) if isinstance(side, int) else side
        if size[0] != size[1] and config.resize_mode == "shortest":
            raise ValueError(f"pictures of {size[0]} x {size[1]} cut out of the middle are not supported")
        edge = size[0] if config.resize_mode == "shortest" else None
        return Preprocessing(size, edge, config.interpolation, "round", 1 / 255, config.mean, config.std)


def _beside(path: Path, name: str) -> Path | None:
    """Return the path of a file in the folder of a graph, or above the folder `onnx` that holds it."""
    folders = [path.parent, path.parent.parent] if path.parent.name == "onnx" else [path.parent]
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: is not a JSON file that can be read ({error})") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: is not a JSON object; copy it again from the model's repository")
    return content
