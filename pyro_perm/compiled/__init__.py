"""Losses that ``torch.compile`` takes as one graph."""
