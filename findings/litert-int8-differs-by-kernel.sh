#!/usr/bin/env bash
# ai-edge-litert 2.3.0, flatbuffers 25.12.19, numpy 2.3.5 (CPU, x86-64)
#
# Behaviour: a TFLite network of 8-bit integers has no one result. The kernels that an Interpreter takes by default
# (those of XNNPACK) and the built-in ones, which BUILTIN_WITHOUT_DEFAULT_DELEGATES takes and which run the operators
# that XNNPACK leaves, round the scaled sum of a convolution in different ways. In one convolution a few values in ten
# thousand come out one code higher or lower; each layer makes more of it, until after twelve layers half of the values
# differ, by several codes. So features of two settings are equal only if the kernels are. (In a real network of 27
# layers, an 8-bit YAMNet, 4 % of its 1024 values differ, by up to 3 codes, and its scores by up to 0.07.)
#
# Guess before running: inputs, weights and sums are integers, so all kernels give the same bits.
#
# Output seen (share of values that differ from those of the built-in kernels, and by how many codes at most):
#    1 layers    0.02%  1 codes
#    4 layers    9.16%  1 codes
#   12 layers   58.19%  5 codes
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet ai-edge-litert==2.3.0 flatbuffers==25.12.19 numpy==2.3.5
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

SIDE, CHANNELS = 16, 32
generator = np.random.default_rng(0)


def quantization(scales):
    """Return the scales of a tensor, one for all or one a channel, with zero points of 0."""
    made = schema.QuantizationParametersT()
    made.scale, made.zeroPoint, made.quantizedDimension = list(scales), [0] * len(scales), 0
    return made


def network(layers):
    """Return a TFLite file of 3 x 3 convolutions with random weights, each in another scale a channel."""
    model, graph = schema.ModelT(), schema.SubGraphT()
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CONV_2D
    code.version = 3
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], []
    graph.tensors, graph.operators = [], []

    def tensor(name, shape, kind, scales, content=None):
        buffer, made = schema.BufferT(), schema.TensorT()
        buffer.data = None if content is None else np.frombuffer(content.tobytes(), np.uint8)
        model.buffers.append(buffer)
        made.name, made.shape, made.type, made.buffer = name, list(shape), kind, len(model.buffers) - 1
        made.quantization = quantization(scales)
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    int8, int32 = schema.TensorType.INT8, schema.TensorType.INT32
    last = tensor("x", (1, SIDE, SIDE, CHANNELS), int8, [1.0])
    graph.inputs = [last]
    for number in range(layers):
        weights = generator.integers(-127, 128, (CHANNELS, 3, 3, CHANNELS)).astype(np.int8)
        bias = generator.integers(-50_000, 50_001, CHANNELS).astype(np.int32)
        scales = generator.uniform(0.9, 1.1, CHANNELS) / (73 * np.sqrt(9 * CHANNELS))  # which keeps the variance
        operator, options = schema.OperatorT(), schema.Conv2DOptionsT()
        options.padding, options.strideH, options.strideW = schema.Padding.SAME, 1, 1
        operator.opcodeIndex = 0
        operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.Conv2DOptions, options
        operator.inputs = [
            last,
            tensor(f"w{number}", weights.shape, int8, scales, weights),
            tensor(f"b{number}", bias.shape, int32, scales, bias),
        ]
        last = tensor(f"y{number}", (1, SIDE, SIDE, CHANNELS), int8, [1.0])
        operator.outputs = [last]
        graph.operators.append(operator)
    graph.outputs = [last]
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def computed(content, kernels, x):
    interpreter = Interpreter(model_content=content, num_threads=1, experimental_op_resolver_type=kernels)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).astype(int)


x = generator.integers(-90, 91, (1, SIDE, SIDE, CHANNELS)).astype(np.int8)
shares, most = [], []
for layers in (1, 4, 12):
    content = network(layers)
    default = computed(content, OpResolverType.AUTO, x)
    built_in = computed(content, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES, x)
    shares.append(float((default != built_in).mean()))
    most.append(int(np.abs(default - built_in).max()))
    print(f"{layers:>2} layers  {shares[-1]:7.2%}  {most[-1]} codes")
sys.exit(not (0 < shares[0] < shares[1] < shares[2] and most[2] > 1))
PYTHON
