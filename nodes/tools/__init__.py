"""The LoRA workshop: average, convert, merge, extract, resize, look inside."""
