"""The whole pipeline on tiny random weights: what `musubi demo` runs."""
