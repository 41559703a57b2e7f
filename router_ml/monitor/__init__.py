"""Live metrics, alert rules and the watch that runs them."""
