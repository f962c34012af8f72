"""Posteriors in ArviZ."""
