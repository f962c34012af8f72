"""Certified intervals: mutual information, ELBO, evidence."""
