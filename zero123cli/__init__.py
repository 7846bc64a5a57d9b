"""One photo to a clean, textured mesh. The command is `zero123`; these modules are what it calls."""

__version__ = "0.1.0"
