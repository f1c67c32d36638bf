"""The nets: a catalogue of tables and loops, and the way from a NET argument to a module."""
