"""Measuring models: ask each query of each model, score what comes back, compare. `training.benchmark` is the door."""
