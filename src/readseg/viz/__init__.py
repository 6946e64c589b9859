"""Pictures, charts and tables of numbers that are given."""
