"""Posteriors of Pyro models by variational inference and by NUTS, and a verdict on whether to trust them."""

__version__ = "0.1.0"
