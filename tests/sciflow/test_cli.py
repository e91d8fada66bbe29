"""The command line: help without heavy imports, one readable line per error, exit codes, interruption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from sciflow import __version__
from sciflow.cli import run

TOY = '''
import errno, os, sys, time
from pathlib import Path
import click
from sciflow.errors import UserError

@click.group()
def toy():
    """Toys."""

@toy.command()
def user():
    raise UserError("events.csv: column 'pt' is missing; it has: eta, phi")

@toy.command()
def absent():
    open("/no/such/file.csv")

@toy.command()
def folder():
    open("/", "wb")

@toy.command()
def full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out.parquet")

@toy.command()
def bug():
    {}["surprise"]

@toy.command()
def value():
    return 7

@toy.command()
@click.pass_context
def verdict(ctx):
    ctx.exit(3)

@toy.command()
def lines():
    for number in range(200_000):
        click.echo(number)

@toy.command()
def buffered():
    sys.stdout.write("a line that is flushed at the end")

@toy.command()
@click.argument("target", type=Path)
def slow(target):
    temporary = target.with_name(target.name + ".tmp-1")
    try:
        temporary.write_text("half")
        click.echo("ready")
        sys.stdout.flush()
        time.sleep(60)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)

def run(output):
    (output / "sub").mkdir(exist_ok=True)
    (output / "sub" / "report.html").write_text("done")
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A foreign package with a domain `toy`, importable here and in subprocesses."""
    place = tmp_path / "site"
    (place / "sciflow_toy").mkdir(parents=True)
    (place / "sciflow_toy" / "__init__.py").write_text(
        "from sciflow.domain import Domain\n"
        "domain = Domain('toy', 'Toys.', commands='sciflow_toy.commands:toy', demo='sciflow_toy.commands:run')\n"
    )
    (place / "sciflow_toy" / "commands.py").write_text(TOY)
    information = place / "sciflow_toy-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: sciflow-toy\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[sciflow.domains]\ntoy = sciflow_toy:domain\n")
    monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("PYTHONPATH", str(place))
    for name in [name for name in sys.modules if name.startswith("sciflow_toy")]:
        monkeypatch.delitem(sys.modules, name)
    return place


def _start(*words: str, **options) -> subprocess.Popen:
    code = "from sciflow.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["domains"], ["data", "list"], ["demo", "--help"]])
def test_light_commands_import_nothing_heavy(words):
    code = (
        "import sys; from sciflow.cli import run; code = run(sys.argv[1:]); "
        "print('HEAVY', sorted({m.partition('.')[0] for m in sys.modules} & "
        "{'torch', 'numpy', 'xarray', 'scipy', 'pandas', 'matplotlib', 'uproot', 'zarr', 'zuko'})); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_help_answers_within_half_a_second():
    """The best of seven, so that a busy machine does not fail it; an import of torch alone takes longer."""
    seconds = []
    for _ in range(7):
        clock = time.monotonic()
        process = _start("--help")
        process.communicate()
        seconds.append(time.monotonic() - clock)
    assert min(seconds) < 0.5


def test_help_lists_commands_and_domains(toy, capsys):
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    assert [word for word in ("demo", "domains", "data", "physics", "toy") if f"  {word} " not in text] == []


def test_a_bare_command_shows_the_help(capsys):
    assert run([]) == 0
    assert run(["data"]) == 0
    assert capsys.readouterr().out.count("Usage:") == 2


def test_the_console_script_is_registered():
    (script,) = (point for point in metadata.entry_points(group="console_scripts") if point.name == "sciflow")
    assert script.value == "sciflow.cli:main"


def test_version(capsys):
    assert run(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["toy", "user"], "events.csv: column 'pt' is missing; it has: eta, phi"),
        (["toy", "absent"], "No such file or directory: /no/such/file.csv"),
        (["toy", "folder"], "Is a directory: /"),
        (["toy", "full"], "No space left on device: out.parquet"),
        (["nothing"], "No such command 'nothing'"),
        (["--nothing"], "No such option '--nothing'"),
        (["toy", "nothing"], "(see `sciflow toy --help`)"),
        (["demo", "mars"], "there is no domain 'mars'"),
        (["data", "path", "mars"], "there is no data set 'mars'"),
        (["data", "fetch"], "name a set"),
    ],
)
def test_a_mistake_of_the_caller_is_one_line_and_code_2(toy, capsys, words, message):
    assert run(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("sciflow: error: ")
    assert message in line


def test_our_own_mistake_is_one_line_and_code_1(toy, capsys):
    assert run(["toy", "bug"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "sciflow: internal error: KeyError: 'surprise'; run again with --debug for the traceback"


@pytest.mark.parametrize("words", [["--debug", "toy", "user"], ["toy", "user", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(toy, capsys, words):
    assert run(words) == 2
    text = capsys.readouterr().err
    assert "Traceback (most recent call last)" in text
    assert text.splitlines()[-1].startswith("sciflow: error: events.csv")


def test_debug_through_the_environment(toy, capsys, monkeypatch):
    monkeypatch.setenv("SCIFLOW_DEBUG", "1")
    assert run(["toy", "bug"]) == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("SCIFLOW_DEBUG", "0")
    assert run(["toy", "bug"]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_what_a_command_returns_is_no_exit_code(toy):
    assert run(["toy", "value"]) == 0
    assert run(["toy", "verdict"]) == 3  # but an exit code that it asks for is


@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")])
def test_an_interrupted_command_leaves_no_half_file(toy, tmp_path, number, code, word):
    target = tmp_path / "result.txt"
    process = _start("toy", "slow", str(target))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, text = process.communicate(timeout=30)
    assert process.returncode == code
    assert text.split() == ["sciflow:", word]
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("result")] == []


def test_a_closed_pipe_is_quiet(toy):
    process = _start("toy", "lines")
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    process.wait(timeout=30)


def test_a_pipe_that_is_closed_before_the_last_flush_is_quiet(toy):
    read, write = os.pipe()
    os.close(read)
    code = "from sciflow.cli import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code, "toy", "buffered"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert process.communicate(timeout=30)[1] == ""


def test_a_broken_domain_does_not_break_the_help(tmp_path, monkeypatch, capsys):
    (tmp_path / "sciflow_wreck.py").write_text("raise RuntimeError('needs CUDA 3')\n")
    information = tmp_path / "sciflow_wreck-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: sciflow-wreck\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[sciflow.domains]\nwreck = sciflow_wreck:domain\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert run(["--help"]) == 0
    assert run(["domains"]) == 0
    assert (
        " ".join(capsys.readouterr().out.split()).count("not available: sciflow_wreck:domain raises RuntimeError: needs CUDA 3")
        == 2
    )
    assert run(["wreck", "--help"]) == 2
    assert "needs CUDA 3" in capsys.readouterr().err


def test_demo_ends_by_naming_its_files(toy, tmp_path, capsys):
    output = tmp_path / "new" / "folder"
    assert run(["demo", "toy", "--output", str(output)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert str(output / "sub" / "report.html") in last
    assert "(4 bytes)" in last


def test_demo_of_an_output_that_is_a_file(toy, tmp_path, capsys):
    (tmp_path / "taken").write_text("x")
    assert run(["demo", "toy", "--output", str(tmp_path / "taken")]) == 2
    assert "is a file" in capsys.readouterr().err


def test_demo_without_a_name_asks_when_there_are_several(toy, capsys):
    assert run(["demo"]) == 2
    assert "installed: mri, physics, toy" in capsys.readouterr().err


def test_data_verify_reports_a_wrong_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SCIFLOW_DATA", str(tmp_path))
    (tmp_path / "physics").mkdir()
    (tmp_path / "physics" / "uproot-HZZ.root").write_bytes(b"not this")
    assert run(["data", "verify", "uproot_hzz"]) == 2
    captured = capsys.readouterr()
    assert captured.out.split()[:2] == ["uproot_hzz", "wrong"]
    assert "wrong or absent: uproot_hzz" in captured.err


def test_data_verify_of_an_absent_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SCIFLOW_DATA", str(tmp_path))
    monkeypatch.setattr("sciflow.datasets.cache_folder", lambda: tmp_path / "cache")
    assert run(["data", "verify"]) == 0
    assert {line.split()[1] for line in capsys.readouterr().out.splitlines()} == {"absent"}
    assert run(["data", "verify", "uproot_hzz"]) == 2


@pytest.mark.data
def test_data_verify_and_path_on_the_real_files(science_data, monkeypatch, capsys):
    monkeypatch.setenv("SCIFLOW_DATA", os.fspath(science_data))
    assert run(["data", "verify", "zee_run2011a_early", "zmumu_run2011a", "uproot_zmumu", "uproot_hzz"]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["ok"] * 4
    assert run(["data", "path", "uproot_hzz"]) == 0
    assert Path(capsys.readouterr().out.strip()).stat().st_size == 217945
