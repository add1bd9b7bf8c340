"""Where in source an activation is applied: forwards read, rewritten, and bound.

Reading one function: names (what a dotted name leads to), flow (which value a name has), writes (what may write over a
tensor), callees (what applies an activation), expressions (those and what stands around them).

On a live module: methods (which functions of its class are read), carried (functions bound on it), resolving (which
activation an expression computes), uses (all together).

Changing it: rewriting (the new text of a method), replacements (what that calls), binding (the class that has it).
"""
