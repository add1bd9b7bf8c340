"""How far a patch moves what a model computes, beside the model's own rounding error: that of its unpatched self
against a float64 copy.

logits (example by example), layers (each layer's output, on one batch). Nothing is imported here.
"""
