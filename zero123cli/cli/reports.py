"""What should not happen is written down for a report: exit code 70 and the name of a log file."""

from __future__ import annotations

import platform
import secrets
import sys
import time
import traceback

from .. import __version__, durable, machine
from ..errors import Zero123Error


def file_report(error: Exception, source: str = "") -> Zero123Error:
    """Logs an exception that nobody expected; the error to show for it."""
    head = f"zero123 {__version__}, Python {platform.python_version()}, {platform.platform()}\n{sys.argv}\n"
    text = head + "".join(traceback.format_exception(error))
    try:
        folder = machine.log_folder()
        path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}.log"
        folder.mkdir(parents=True, exist_ok=True)
        durable.write_file(path, text.encode("utf-8", "backslashreplace"), overwrite=True)
        remedy = f"please report it with {path}"
    except (OSError, Zero123Error):
        remedy = "please report it with what -vv prints"
    failure = Zero123Error(f"internal error ({type(error).__name__})", where=source, remedy=remedy)
    failure.__cause__ = error
    return failure
