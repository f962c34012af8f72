"""Training for those who want no loop of their own, and recipes that fit any loop."""
