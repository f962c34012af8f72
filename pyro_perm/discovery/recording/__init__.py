"""What a model computes: its log joint as a graph of operations."""
