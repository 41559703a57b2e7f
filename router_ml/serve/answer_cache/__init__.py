"""Cached answers: exact matches, and near matches where code asks for them."""
