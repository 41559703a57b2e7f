"""Endpoints in front of a gateway; needs the extra `server`."""
