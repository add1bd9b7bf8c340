"""Methods that treat each token by itself, run in tiles along the sequence.

values (what there is in a method), operations (what becomes of it), frames (statement by statement) → judging (whether
a method treats each token by itself, and by which facts) → running (a call in tiles) → choosing (which methods of a
model, and why not others).
"""
