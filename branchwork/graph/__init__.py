"""A net's graph for one input size: every operation, what it costs, and the joins with their branches."""
