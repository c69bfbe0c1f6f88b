"""Generative stories: Pyro functions with data, simulators and, where known, exact answers."""
