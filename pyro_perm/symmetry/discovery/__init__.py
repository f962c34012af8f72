"""Reading a model's permutation symmetry off the computation of its log joint."""
