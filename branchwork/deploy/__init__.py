"""A net as a file for an inference engine, and what each engine makes of it on this machine."""
