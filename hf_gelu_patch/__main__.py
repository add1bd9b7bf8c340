"""``python -m hf_gelu_patch``: the command line."""

import sys

from hf_gelu_patch.cli import main

if __name__ == "__main__":
    sys.exit(main())
