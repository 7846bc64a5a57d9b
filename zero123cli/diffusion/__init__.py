"""The 2D half: the network that imagines other views of a photo, and what it is made of."""
