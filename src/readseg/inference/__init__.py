"""What a user calls: a segmenter, its queries and its results."""
