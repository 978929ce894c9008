"""Prove a conversion: compare the rewritten network with the original's own forwards."""
