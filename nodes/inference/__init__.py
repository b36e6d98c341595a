"""Nodes around ComfyUI's own sampling: models in scaled fp8, and MagCache."""
