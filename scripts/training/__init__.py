"""How the reference models that come with the package are made: ``python -m scripts.training``."""
