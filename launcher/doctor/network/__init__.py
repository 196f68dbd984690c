"""Checks of connections and of a collective between ranks."""
