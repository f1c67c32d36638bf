"""What each branch of a trained net contributes, and what speaks for the class of one picture."""
