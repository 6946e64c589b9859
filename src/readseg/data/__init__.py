"""Data sets: pixels and text, never the model."""
