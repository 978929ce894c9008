"""Runtimes: files for each of them, worker processes that run and time them, and the latency of layers and networks."""
