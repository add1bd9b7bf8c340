"""What is known of the Triton kernels without a GPU; ``kernels.md`` is the page."""

import os

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # what triton 3.9 warns about; our sums are written as fma
