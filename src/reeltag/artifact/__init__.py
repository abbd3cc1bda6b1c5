"""A shipped model: one checked file, its quantized weights, and its forms elsewhere (ONNX, Hub, TensorFlow)."""
