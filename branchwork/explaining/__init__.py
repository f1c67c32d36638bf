"""What each branch of a trained net contributes, and what supports the class of one picture."""
