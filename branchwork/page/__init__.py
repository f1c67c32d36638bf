"""The page: one HTML file in which a net runs on what one draws."""
