"""Events: what is recorded of each request, and the stores that keep it."""
