"""Networks without torch: embedded weights, ONNX graphs, the onnxruntime runner, linear heads."""
