"""Turn a query and its context into the numbers the heads read."""
