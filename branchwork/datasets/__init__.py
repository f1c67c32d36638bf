"""Data sets: where they come from, how they are split and batched, how a picture becomes what a net was trained on."""
