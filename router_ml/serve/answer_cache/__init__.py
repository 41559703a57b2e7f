"""Cached answers: exact matches, and near matches where asked for."""
