"""What the user names, found and loaded: models, their tokenizers or image processors, and data.

A name is told apart by its form, before anything heavy is imported and without the network: a reference model, a
folder, or an id on the hub. Whatever is wrong is an ``EvaluationError`` that names the remedy.

``checkpoints`` finds a model's files; ``subjects`` completes what was named to a ``Subject``; ``models`` and
``processors`` load.
"""
