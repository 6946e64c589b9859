"""Scores: the metrics, the predictions on disk, the benchmarks that make them, the tables that show them."""
