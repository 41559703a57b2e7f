"""Answers kept for a while: exact matches, and, only where asked for, near ones behind a guard."""
