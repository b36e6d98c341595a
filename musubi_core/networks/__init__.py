"""Adapters: choose the layers, attach, train, save, load and merge. Knows no architecture, only names."""
