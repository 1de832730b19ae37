"""Features, retrieval metrics, protocols and their intervals."""
