"""What was learned, as verified files, and the registry that says which bundle is active."""
