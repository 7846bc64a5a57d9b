"""The command `zero123`: parse, call, print. Verbs import what they need in their bodies, so that help is instant."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from . import signals
from .screen import screen


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and ends the process with the exit code of the contract."""
    signals.install()
    call = sys.argv[1:] if arguments is None else list(arguments)
    try:
        try:
            code = run(call)
            code = screen.flush(code)
        except BrokenPipeError:  # `zero123 --help | head -1`
            screen.close_stdout()
            code = 0
        signals.let_go()
    except signals.Interrupted as stopped:
        screen.stop()
        kept = "" if "--no-cache" in call else "; what was finished is kept: run it again to go on"
        screen.note(f"zero123: stopped{kept}")
        signals.die_of(stopped.number)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """The exit code of a call. Nothing a user can cause ends in a traceback."""
    from typer.exceptions import TyperException

    from ..errors import (
        OutOfMemoryError,
        SettingsError,
        UsageError,
        Zero123Error,
        gravest,
        is_out_of_memory,
        writing_failed,
    )
    from .app import app
    from .reports import file_report

    failure: Zero123Error
    cause: BaseException
    try:
        if asks_help(arguments):
            return 0
        code = app(arguments, prog_name="zero123", standalone_mode=False)
        return gravest([code if isinstance(code, int) else 0, screen.unsaid])
    except BrokenPipeError:
        raise
    except SystemExit:  # what Typer makes of a closed pipe, with exit code 1
        raise BrokenPipeError from None
    except Zero123Error as error:
        failure, cause = error, error
    except TyperException as wrong:
        context, option = getattr(wrong, "ctx", None), getattr(wrong, "param", None)
        remedy = f"see: {context.command_path if context else verb_of(arguments)} --help"
        source = context.get_parameter_source(option.name) if context and option else None
        kind = SettingsError if source and source.name == "ENVIRONMENT" else UsageError
        failure, cause = kind(wrong.format_message().rstrip("."), remedy=remedy), wrong
    except OSError as broken:
        failure, cause = writing_failed(broken, os.fspath(broken.filename or "zero123")), broken
    except Exception as unknown:
        full = is_out_of_memory(unknown)
        remedy = "close other programs and run it again"
        failure = OutOfMemoryError("out of memory", remedy=remedy) if full else file_report(unknown)
        cause = unknown
    screen.stop()
    screen.failed(failure, cause)
    return failure.exit_code


def asks_help(arguments: list[str]) -> bool:
    """Prints the help of a verb when nothing else is asked; Typer's own way to it imports twice as much."""
    from typer import echo

    *verbs, last = arguments or [""]
    if last not in ("-h", "--help"):
        return False
    context = walk(verbs)
    if context is None:
        return False
    echo(context.command.get_help(context))
    return True


def verb_of(arguments: list[str]) -> str:
    """What of a call names a verb."""
    for count in (2, 1):
        context = walk(arguments[:count])
        if context is not None and len(arguments) >= count:
            return context.command_path
    return "zero123"


def walk(verbs: list[str]) -> Any:
    """The context of the verb that is called so, or None."""
    from typer import Context
    from typer.core import TyperGroup
    from typer.main import get_command

    from .app import app

    command: Any = get_command(app)
    context = Context(command, info_name="zero123", **command.context_settings)
    for verb in verbs:
        if not isinstance(command, TyperGroup) or verb not in command.commands:
            return None
        command = command.commands[verb]
        context = Context(command, info_name=verb, parent=context, **command.context_settings)
    return context
