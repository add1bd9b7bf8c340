"""How fast variants of a model are, measured so that noise is not taken for a difference.

rounds (raw samples) → ratios (how many times as fast, and whether that counts) → summary (the conclusions for each
variant); memory and share (of the time that activations take) stand by themselves. Nothing is imported here.
"""
