"""Options of a training run, one file per concern. Imports no torch: the command line is built from them."""
