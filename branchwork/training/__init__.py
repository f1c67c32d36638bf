"""Training, evaluating and predicting, and the run folder that they share."""
