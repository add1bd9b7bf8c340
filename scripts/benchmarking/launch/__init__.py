"""What launching a kernel costs Python; ``launch.json`` is what was measured last."""
