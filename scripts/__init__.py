"""What the project is set up, tested and measured with. The modules run from the repository's root:
``python -m scripts.benchmarking``, ``python -m scripts.covering``."""
