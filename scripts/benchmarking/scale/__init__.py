"""What an evaluation of many examples takes: memory, time, and what is left of it when it is killed."""
