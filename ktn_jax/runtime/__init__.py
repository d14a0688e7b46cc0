"""What a process needs around the computation: JAX's settings, memory, files, configurations."""
