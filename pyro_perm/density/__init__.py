"""The density of a base guide, unit by unit."""
