"""Training: targets, the forward pass with its losses, and the loop around them."""
