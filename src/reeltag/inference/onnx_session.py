"""Open exported ONNX files in onnxruntime, in the modes of `reeltag.load`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from reeltag.core.environment import onnx_runtime
from reeltag.core.errors import ArtifactError, UsageError
from reeltag.core.storage import require_regular

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

OnnxMode = Literal["exact", "small", "fast"]

# Settings of onnxruntime for each mode.
ENTRIES: dict[OnnxMode, dict[str, str]] = {
    # Weights are dequantized once by constant folding, which skips DequantizeLinear without this setting.
    "exact": {"session.disable_quant_qdq": "1"},
    # Each product dequantizes its piece of the weights in every call.
    "small": {},
    # A product and the DequantizeLinear before it are fused to one 8-bit kernel.
    "fast": {
        "session.enable_dq_matmulnbits_fusion": "1",
        "session.qdq_matmulnbits_accuracy_level": "4",
        "session.qdq_matmulnbits_block_size": "256",
    },
}
# Disabled optimizers. `small` must neither fold the dequantized weights nor use 8-bit kernels. For `fast`, fusing a
# product with the following sum, or sharing scales between products, would hide the pattern of the 8-bit kernels.
DISABLED: dict[OnnxMode, list[str]] = {
    "exact": [],
    "small": ["ConstantFolding", "QDQSelectorActionTransformer"],
    "fast": ["MatMulAddFusion", "ConstantSharing"],
}


def open_onnx(path: str | Path, mode: OnnxMode = "exact", threads: int = 0) -> InferenceSession:
    """Open an ONNX file for `session.run(None, {"frames": [B, T, D], "lengths": [B] int64})`.

    Args:
        path: a file that `reeltag export` wrote.
        mode: `exact`, `small` or `fast`, as in `reeltag.load`; see docs/onnx.md.
        threads: number of threads that compute; by default one per core.

    Raises:
        ArtifactError: the file is missing or damaged.
        UsageError: there is no such mode, or onnxruntime is missing.
    """
    if mode not in ENTRIES:
        raise UsageError(f"mode: there is no {mode!r} for ONNX; use {', '.join(get_args(OnnxMode))}")
    return start_session(Path(path), str(path), mode, threads)


def start_session(model: Path | bytes, name: str, mode: OnnxMode, threads: int) -> InferenceSession:
    """Start a session of onnxruntime on this machine's CPUs.

    Args:
        model: path of an ONNX file, or its content.
        name: of the model, for errors.
        mode: `exact`, `small` or `fast`.
        threads: number of threads that compute; 0 for one per core.

    Raises:
        ArtifactError: the file is missing, or onnxruntime cannot open the model.
        UsageError: onnxruntime is missing.
    """
    onnxruntime = onnx_runtime("onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    for key, value in ENTRIES[mode].items():
        options.add_session_config_entry(key, value)
    try:
        return onnxruntime.InferenceSession(
            str(require_regular(model)) if isinstance(model, Path) else model,
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=DISABLED[mode],
        )
    except Exception as error:  # its exceptions have no other common base
        raise ArtifactError(f"{name}: onnxruntime cannot open it ({error}); export it again") from error
