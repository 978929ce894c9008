"""Compare a rewritten network with its original."""
