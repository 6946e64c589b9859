"""From a name or a folder to weights, and back."""
