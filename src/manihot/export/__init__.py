"""A finished run as files that work without manihot: one ONNX network with its certificate, and a page for a phone."""
