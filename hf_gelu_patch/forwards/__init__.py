"""Where in source an activation is applied: forwards read, rewritten, and bound."""
