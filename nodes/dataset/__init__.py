"""Nodes that say what is trained on."""
