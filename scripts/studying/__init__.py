"""What an encyclopedia's article claims of GELU, checked by measuring.

sizes (how much of it) → parts (what is measured, a piece at a time, each written down as soon as it is known) → claims
(what the pieces come to, and a verdict on each claim) → page (one web page, with figures drawn from the same record).
"""
