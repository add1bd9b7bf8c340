"""Faults of known kinds, planted in tiny models: which are caught, and by what. ``planted.md`` is the table."""
