"""Analyse the source code and bytecode of forwards, for what a trace doesn't show."""
