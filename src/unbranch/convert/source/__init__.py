"""What the source code of a forward says that a trace doesn't show."""
