"""READ on the LLaVA and SAM of transformers."""
