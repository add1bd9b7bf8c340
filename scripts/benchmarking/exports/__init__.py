"""What ONNX Runtime makes of models that were exported patched; ``exports.json`` is what was measured last."""
