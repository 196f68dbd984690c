"""The version: here, since a source tree that is not installed has no metadata to ask."""

__version__ = "0.1.0"
