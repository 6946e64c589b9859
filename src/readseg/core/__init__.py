"""Tensors, pixels, numbers and files: no model, no transformers."""
