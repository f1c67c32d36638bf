"""Views of an untrained net: the table, and the findings of lint."""
