"""Write merged layers into a copy of the network."""
