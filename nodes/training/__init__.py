"""Nodes that set up, plan and run a training."""
