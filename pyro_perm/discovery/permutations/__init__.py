"""What may be permuted along the axes of every tensor of a graph."""
