"""One clear line for every user's error, and status 130 after Ctrl-C: the group that runs the commands."""

from __future__ import annotations

import warnings
from typing import Any

import typer
from safetensors import SafetensorError
from typer.core import TyperGroup

from sbiflow.execution import SimulationWarning

USER_ERROR, INTERRUPTED = 2, 130

# What bad input, a full disk, a missing extra, a diverged training or a dead worker raise. Anything else is a
# fault of ours, and keeps its traceback.
_USER_ERRORS = (ValueError, OSError, ArithmeticError, ImportError, MemoryError, RuntimeError, SafetensorError)


class UserErrors(TyperGroup):
    """Commands whose errors are one line on stderr and status 2; `--debug`, anywhere, shows the traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Accept --debug after the command too: it is appended to a line that has just failed."""
        debug = ["--debug"] if "--debug" in args else []
        return super().parse_args(ctx, debug + [argument for argument in args if argument != "--debug"])

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with warnings.catch_warnings():
            warnings.filterwarnings("always", category=SimulationWarning)
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except (typer.Exit, typer.Abort, BrokenPipeError):
                raise
            except KeyboardInterrupt as error:
                if not error.args:  # `simulate` and `train` have said it already, and more
                    typer.echo("stopped: run the same command again to continue", err=True)
                raise typer.Exit(INTERRUPTED) from None
            except _USER_ERRORS as error:
                if ctx.params.get("debug"):
                    raise
                typer.echo(f"error: {one_line(error)}", err=True)
                raise typer.Exit(USER_ERROR) from None


def one_line(error: BaseException) -> str:
    """The message without line breaks; of an operating system's error the file and the reason.

    >>> one_line(FileNotFoundError(2, "No such file or directory", "x.npy"))
    'x.npy: No such file or directory'
    """
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    typer.echo(f"warning: {' '.join(str(message).split())}", err=True)
