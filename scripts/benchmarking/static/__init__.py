"""What is known of the Triton kernels without a GPU; ``kernels.md`` is the page."""
