"""Measure models and routers: benchmark runs, scoring, metrics, baselines."""
