"""The `sciflow` command: one sub-command per installed domain, the public data sets, and readable errors."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import click

from sciflow import __version__
from sciflow.cli.data import data
from sciflow.cli.draws import certify, sample
from sciflow.domain import Domain, Unavailable, domain, domains
from sciflow.errors import UserError

__all__ = ["cli", "main", "run"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
_USER_OS_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)


class _DomainStub(click.Command):
    """Stands for a domain's commands in the help text; the real ones are imported when they are called."""

    def __init__(self, declaration: Domain | Unavailable) -> None:
        available = isinstance(declaration, Domain)
        text = declaration.summary if isinstance(declaration, Domain) else f"not available: {declaration.reason}"
        super().__init__(declaration.name, short_help=text if available else text[:200])

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        real: click.Command = domain(self.name or "").load_commands()
        return real.make_context(info_name, args, parent=parent, **extra)


class _Root(click.Group):
    """Our own commands, and one stub per registered domain."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*sorted(self.commands), *(name for name in domains() if name not in self.commands)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.commands:
            return self.commands[cmd_name]
        found = domains().get(cmd_name)
        return None if found is None else _DomainStub(found)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own = [(name, self.commands[name].get_short_help_str(formatter.width)) for name in sorted(self.commands)]
        foreign = [(name, stub.short_help or "") for name, stub in ((n, _DomainStub(d)) for n, d in domains().items())]
        with formatter.section("Commands"):
            formatter.write_dl(own)
        with formatter.section("Domains"):
            formatter.write_dl(foreign or [("none", "pip install 'sciflow[physics]'")])

    def invoke(self, ctx: click.Context) -> None:
        super().invoke(ctx)  # what a command returns is for Python callers, it is no exit code


@click.group(cls=_Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sciflow")
@click.option("--debug", is_flag=True, help="Show the traceback of an error (anywhere on the line; or SCIFLOW_DEBUG=1).")
def cli(debug: bool) -> None:
    """Conditional flows for science: draws from p(x | evidence) that come with a certificate."""


@cli.command("domains")
def _domains() -> None:
    """List the installed domains."""
    known = domains()
    if not known:
        raise UserError("no domain is installed: pip install 'sciflow[physics]'")
    for name, found in known.items():
        click.echo(f"{name:<14} {found.summary if isinstance(found, Domain) else 'not available: ' + found.reason}")


@cli.command("demo")
@click.argument("name", metavar="[DOMAIN]", required=False)
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), default=Path("demo-output"), show_default=True,
    help="Folder for the results.",
)  # fmt: skip
def _demo(name: str | None, output: Path) -> None:
    """Run a domain's main job on its embedded sample (no network)."""
    if name is None:
        available = [found.name for found in domains().values() if isinstance(found, Domain)]
        if len(available) != 1:
            raise UserError(f"name a domain: sciflow demo DOMAIN; installed: {', '.join(available) or 'none'}")
        name = available[0]
    demo = domain(name).load_demo()
    output.mkdir(parents=True, exist_ok=True)
    clock, wall = time.monotonic(), time.time()
    demo(output)
    written = [file for file in sorted(output.rglob("*")) if file.is_file() and file.stat().st_mtime >= wall - 2.0]
    click.echo(f"{name}: {len(written)} files in {time.monotonic() - clock:.0f} s")
    for file in written:
        click.echo(f"  {file}  ({file.stat().st_size:,} bytes)")


for _command in (data, certify, sample):
    cli.add_command(_command)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, raised like Ctrl-C so that temporary files are cleaned up."""


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code: 0 fine, 1 our fault, 2 the caller's, 130 interrupted, 143 terminated."""
    words, debug = _without_debug(list(arguments))
    try:
        code = cli.main(args=words, prog_name="sciflow", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.Abort as error:
        terminated = isinstance(error.__cause__, _Terminated)
        _complain("terminated" if terminated else "interrupted")
        return 143 if terminated else 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for click < 8.5: silence the flush at exit
        return 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        message = _user_message(error)
        if message is None:
            hint = "" if debug else "; run again with --debug for the traceback"
            _complain(f"internal error: {type(error).__name__}: {error}{hint}")
            return 1
        _complain(f"error: {message}")
        return 2


def main() -> None:
    """The console script."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(sys.argv[1:]))


def _user_message(error: Exception) -> str | None:
    """The line for a mistake that the caller can mend; None for one that only we can."""
    if isinstance(error, click.UsageError):
        where = error.ctx.command_path if error.ctx else "sciflow"
        return f"{error.format_message()} (see `{where} --help`)"
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, _USER_OS_ERRORS) or (isinstance(error, OSError) and error.errno in _FULL):
        return f"{error.strerror}: {error.filename}" if error.strerror and error.filename else str(error)
    return None


def _without_debug(words: list[str]) -> tuple[list[str], bool]:
    end = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word != "--debug"]
    return kept + words[end:], len(kept) < end or os.environ.get("SCIFLOW_DEBUG", "") not in {"", "0"}


def _complain(message: str) -> None:
    click.echo("sciflow: " + " ".join(message.split()), err=True)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated
