"""The radiance field: a hash grid with two small heads, where it is occupied, and its renderer."""
