"""Training: targets, the forward pass with its losses, the compiled step and the trainer."""
