"""TFLite files of YAMNet's form, written with LiteRT's schema: of samples of any number, with or without the vector."""

import flatbuffers
import numpy as np


def write_sum_network(path, weights, shape, signature, *, outputs):
    """Write a float network: the sum of the samples, its product with weights [1, width], and the sum of that as score.

    Args:
        shape: of the input; that of the file before it is resized.
        signature: the same, with -1 for what is open.
        outputs: names out of `score` and `vector`, in their order.
    """
    from ai_edge_litert import schema_py_generated as schema

    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.subgraphs, model.buffers, model.operatorCodes = 3, [graph], [], []
    graph.tensors, graph.operators, numbers = [], [], {}

    def tensor(name, size, kind=schema.TensorType.FLOAT32, content=None):
        buffer, made = schema.BufferT(), schema.TensorT()
        buffer.data = None if content is None else np.frombuffer(content.tobytes(), np.uint8)
        model.buffers.append(buffer)
        made.name, made.shape, made.type, made.buffer = name, list(size), kind, len(model.buffers) - 1
        numbers[name] = len(graph.tensors)
        graph.tensors.append(made)
        return made

    def operator(code, options_kind, options, inputs, output):
        number, made = schema.OperatorCodeT(), schema.OperatorT()
        number.builtinCode = number.deprecatedBuiltinCode = code
        number.version = 1
        model.operatorCodes.append(number)
        made.opcodeIndex = len(model.operatorCodes) - 1
        made.builtinOptionsType, made.builtinOptions = options_kind, options
        made.inputs, made.outputs = [numbers[name] for name in inputs], [numbers[output]]
        graph.operators.append(made)

    tensor("x", shape).shapeSignature = list(signature)
    tensor("axis", [1], schema.TensorType.INT32, np.array([-1], np.int32))
    tensor("sum", [1] * len(shape))
    tensor("weights", weights.shape, content=weights)
    tensor("vector", weights.shape)
    tensor("score", [1, 1])
    kept = schema.ReducerOptionsT()
    kept.keepDims = True
    reduce = (schema.BuiltinOperator.SUM, schema.BuiltinOptions.ReducerOptions, kept)
    operator(*reduce, ["x", "axis"], "sum")
    multiply = (schema.BuiltinOperator.MUL, schema.BuiltinOptions.MulOptions, schema.MulOptionsT())
    operator(*multiply, ["sum", "weights"], "vector")
    operator(*reduce, ["vector", "axis"], "score")
    graph.inputs, graph.outputs = [numbers["x"]], [numbers[name] for name in outputs]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path
