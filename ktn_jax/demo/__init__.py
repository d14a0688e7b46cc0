"""The main job, whole: people rendered, a model trained on them, its scores and its pictures."""
