"""Guides in files, and back, without pickle: no data, no first call, no code from the file."""

from pyro_perm.saving.guides import load, save

__all__ = ["load", "save"]
