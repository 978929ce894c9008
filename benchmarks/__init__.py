"""Measurements, each reproducible by one command: ``python -m benchmarks.NAME``; ``make bench`` runs them all."""
