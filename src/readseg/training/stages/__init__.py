"""What each stage of a recipe trains."""
