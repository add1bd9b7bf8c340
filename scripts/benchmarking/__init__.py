"""What ``scripts/benchmark.py`` measures with, a module for each of its commands."""
