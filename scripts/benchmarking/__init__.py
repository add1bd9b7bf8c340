"""How long things take, and how far verdicts can be trusted: ``python -m scripts.benchmarking --help``."""
