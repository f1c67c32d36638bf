"""Nets on the same test images: which is better, by how much, and on which pictures."""
