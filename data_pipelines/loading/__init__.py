"""Batches from annotated images: the plan of a run, examples, and the loaders."""
