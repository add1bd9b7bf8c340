"""How large the parts of a tiny model are."""

WIDTH = 64
HEADS = 4
HEAD_WIDTH = WIDTH // HEADS
VOCABULARY = 128
TEXT_LENGTH = 12
SAMPLES = 3840
