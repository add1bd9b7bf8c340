"""All that is to be known of a GPU, in one command: ``README.md`` says how."""
