"""Experiment configurations, as values."""
