"""What other tools and a patch do to each other: the models, the tools, and what must hold of both together.

``python -m scripts.benchmarking.tools`` tries them all; ``tools.md`` is the table of what it found.
"""
