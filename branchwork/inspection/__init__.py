"""What a person sees of a net without training it: the table, the findings of lint, and the drawing."""
