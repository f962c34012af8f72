"""Posterior draws modulo the group."""
