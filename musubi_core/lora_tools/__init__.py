"""What is done with LoRA files after training: average, convert, merge, extract, resize, inspect."""
