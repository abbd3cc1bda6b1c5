"""A shipped model as ONNX."""
