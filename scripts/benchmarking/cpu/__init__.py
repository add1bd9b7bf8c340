"""What a patch gains on a CPU: whole models, single layers, and a gated layer's two products as one."""
