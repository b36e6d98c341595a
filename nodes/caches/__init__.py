"""Nodes that encode media and captions once, ahead of training."""
