"""From a ``torch.nn.Module``, and a posterior over its parameters, to a Pyro model and a guide."""
