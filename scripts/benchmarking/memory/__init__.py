"""What a training step keeps for backward, and the most it takes."""
