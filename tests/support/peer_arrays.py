"""Golden files as our import reads a checkpoint: the authors' names and layouts become ours."""

from pathlib import Path

from reeltag.artifact.quantization.quantize import dequantize_state
from reeltag.artifact.tensorflow.convert import architecture, named_variables, state_dict

SOURCE = Path("golden")


def peer_variables(arrays, prefix="w:"):
    """The arrays `PREFIXtower.a.b` as the checkpoint variables `a/b`."""
    return named_variables({k[len(prefix) :].replace(".", "/"): a for k, a in arrays.items() if k.startswith(prefix)})


def peer_state(arrays, prefix="w:"):
    """The same as a state dict of ours."""
    return dequantize_state(state_dict(peer_variables(arrays, prefix), SOURCE))


def peer_architecture(arrays):
    """The configuration that the variables tell, as a table."""
    return architecture(peer_variables(arrays), SOURCE)
