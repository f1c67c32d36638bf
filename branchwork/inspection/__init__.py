"""Views of an untrained net: the table, the findings of lint, and the drawing."""
