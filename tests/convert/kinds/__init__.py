"""Small networks by kind of program: each module holds some kinds, ``table`` collects their rows."""
