"""The model file: one checked file with quantized weights, and its ONNX, Hub and TensorFlow forms."""
