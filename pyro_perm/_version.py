"""The version, read from here by the package and by its build."""

__version__ = "0.1.0"
