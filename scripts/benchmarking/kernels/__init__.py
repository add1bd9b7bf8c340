"""Every way to compute an activation: checked against float64, then timed."""
