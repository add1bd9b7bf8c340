"""What can be asked of an evaluation: each option declared once, as a field of what it sets."""
