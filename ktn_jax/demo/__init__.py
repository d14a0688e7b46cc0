"""The demo: renders people, trains a model on them, scores it and shows what it finds."""
