"""Nodes that name the base model."""
