"""What a swap costs in quality, and how much of it training gives back

A model is measured, patched, measured, trained, measured again and written: run → stages (what it says of the data),
order (which examples come up when), learner (one step), checkpoints (the run's folder), saving, results and curves.
"""
