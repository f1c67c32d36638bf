"""The version, which a training records."""

__version__ = "0.1.0"
