"""Training steps without traces: the log joint as a function of the latent values."""
