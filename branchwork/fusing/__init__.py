"""A net rewritten into an equal, cheaper one: batch norm folded, siblings merged, affine segments collapsed."""
