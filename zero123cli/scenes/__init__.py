"""Meshes as scenes: read with care, made up, and rendered by ray casting on a CPU."""
