"""Decide a whole file: one pass, constant memory, on all cores or on a Ray cluster, and a killed run continues."""
