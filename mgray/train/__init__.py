"""The training loop: one step after another from a plan, on any number of workers."""
