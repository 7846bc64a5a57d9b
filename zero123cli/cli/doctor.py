"""`zero123 doctor`: what is installed, what is missing, and the one command that mends each problem."""

from __future__ import annotations

from . import options
from .screen import screen

MARKS = {"ok": ("ok  ", ""), "could": ("--  ", "dim"), "bad": ("BAD ", "red")}


@options.verb
def doctor(
    cache_dir: options.CacheDir = None,
    shared_cache: options.SharedCache = False,
) -> None:
    """Check the installation: versions, device, memory, cache, weights. Exits 69 when something has to be mended."""
    from ..checkup import examine
    from ..errors import UnavailableError
    from .session import cache_root

    findings = examine(cache_root(cache_dir), shared=shared_cache)
    if screen.json:
        screen.result("", {"findings": [vars(finding) for finding in findings]})
    else:
        for finding in findings:
            mark = MARKS[finding.state][0]
            screen.result(f"{mark}{finding.what:22} {finding.found}")
            if finding.mend and finding.state != "ok":
                screen.result(f"    {'':22} {finding.mend}")
    bad = [finding.what for finding in findings if finding.state == "bad"]
    if bad:
        raise UnavailableError(f"to be mended: {', '.join(bad)}", remedy="the command is beside each")
