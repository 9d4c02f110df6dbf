"""Hooks of the methods that act inside the vision encoder or the language model.

One module per method, named like its scoring rule in ``edge_atp.pruning``.
"""
