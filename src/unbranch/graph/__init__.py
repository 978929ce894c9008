"""What runs: copies of networks, their reading as graphs, and runs in float64."""
