"""The version. Defined here because a source tree that is not installed has no metadata."""

__version__ = "0.1.0"
