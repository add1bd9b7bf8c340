"""Tasks of lm-evaluation-harness, run on a model and on its patched twins.

lm-evaluation-harness asks the questions, drives the model and scores the answers. ``tasks`` finds what is asked for,
``model`` is the model as it drives it, ``asking`` runs all of it with the same seeds. ``requests`` keeps the batches
that the model was given, which drift and speed are measured on. ``scoring`` makes of two runs' samples what reports
show, and ``run`` puts it together. Nothing of it is imported before it is known to be installed.
"""
