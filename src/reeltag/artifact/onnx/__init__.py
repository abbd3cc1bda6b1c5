"""Export of an artifact to ONNX."""
