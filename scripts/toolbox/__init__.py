"""What ``scripts/tools.py`` judges with: the models, the tools, and what must hold of both together."""
