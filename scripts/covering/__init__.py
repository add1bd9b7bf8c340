"""Whether a patch reaches what it should: a tiny random model of each type that transformers knows, patched and judged.

``coverage.md`` is what ``python -m scripts.covering --table scripts/covering/coverage.md`` found last. The judge has
tables of its own, and shares none with the patcher.
"""
