"""From a field to a file: isosurface, clean-up, texture, formats, and a gate that judges the file."""
