"""Adapters for other people's programs; each file needs the package it is named after (extra `plugins`)."""
