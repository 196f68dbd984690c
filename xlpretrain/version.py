"""Version number; kept here because an uninstalled source tree has no metadata."""

__version__ = "0.1.0"
