"""From meshes to trained weights."""
