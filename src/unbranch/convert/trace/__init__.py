"""Run a forward on proxies and record its operations as a graph."""
