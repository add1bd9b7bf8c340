"""Whether a patch reaches what it should: a tiny random model of each type that transformers knows, and small models of
other libraries, patched and judged.

``coverage.md`` is what ``python -m scripts.covering --table scripts/covering/coverage.md`` found last. ``libraries.md``
and ``libraries.json`` are about the other libraries: ``--library timm … --record scripts/covering/libraries.json``. The
judge has tables of its own, and shares none with the patcher.
"""
