"""What waits in host memory while the device computes: transformer blocks and activations."""
