"""Data sets: where they come from, how they are split and batched, and how any picture becomes an image like theirs."""
