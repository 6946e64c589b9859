"""Scenes: drawn images with exact masks, and questions about them."""
