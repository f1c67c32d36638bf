"""Studies: trainings that answer one question, wherever they run, with what can and what cannot be said of it."""
