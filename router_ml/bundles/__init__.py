"""Bundles (what was learned, as verified files) and the registry that names the active one."""
