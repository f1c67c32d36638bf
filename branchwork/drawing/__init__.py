"""The picture of a net: operations from left to right, branches as lanes, joins as coloured bars."""
