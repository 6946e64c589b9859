"""Training: recipes, the stages they are made of, and the one loop."""
