"""The package as users install it: built, checked, and tried in empty environments of each Python."""
