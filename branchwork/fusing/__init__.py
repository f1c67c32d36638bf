"""An equal, cheaper net."""
