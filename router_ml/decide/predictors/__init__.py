"""Predict complexity, and success, latency, tokens and cost of each model."""
