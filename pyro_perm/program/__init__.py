"""Running somebody's program, and leaving no trace in it."""
