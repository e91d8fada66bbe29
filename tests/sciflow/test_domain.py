"""The Domain contract, on real entry points of packages written into a temporary folder."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from sciflow import UserError
from sciflow.domain import Domain, Unavailable, domain, domains, load


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package as pip would: a module folder and its metadata with an entry point."""
    monkeypatch.syspath_prepend(tmp_path)

    def _install(name: str, declaration: str, *, target: str = "domain", **modules: str) -> Path:
        package = tmp_path / f"sciflow_{name}"
        package.mkdir()
        (package / "__init__.py").write_text(textwrap.dedent(declaration))
        for module, text in modules.items():
            (package / f"{module}.py").write_text(textwrap.dedent(text))
        metadata = tmp_path / f"sciflow_{name}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sciflow-{name}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[sciflow.domains]\n{name} = sciflow_{name}:{target}\n")
        return package

    return _install


def _declare(name: str, extra: str = "") -> str:
    return (
        "from sciflow.domain import Domain\n"
        f"domain = Domain('{name}', 'A toy.', commands='sciflow_{name}.commands:group', demo='sciflow_{name}.demo:run', "
        f"extra='{extra}')\n"
    )


def test_physics_is_registered_and_its_declaration_is_light():
    found = domain("physics")
    assert found.requirement == "sciflow[physics]"
    assert found.commands == "sciflow_physics.commands:physics"


def test_a_foreign_package_registers_in_the_same_way(install):
    install("toya", _declare("toya"), demo="def run(output):\n    return str(output)\n")
    assert domain("toya").load_demo()(Path("x")) == "x"
    assert list(domains()) == sorted(domains())


@pytest.mark.parametrize(
    ("declaration", "reason"),
    [
        ("import no_such_package_xyz", "no_such_package_xyz"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("domain = 'a string'", "is a str, not a sciflow.domain.Domain"),
        ("other = 1", "AttributeError"),
        (_declare("anothername"), "calls itself 'anothername'"),
    ],
)
def test_a_broken_package_is_listed_with_its_reason(install, request, declaration, reason):
    name = f"broken{request.node.callspec.indices['declaration']}"
    install(name, declaration)
    found = domains()[name]
    assert isinstance(found, Unavailable)
    assert reason in found.reason
    assert f"registered by sciflow-{name}" in found.reason
    assert "\n" not in found.reason
    assert isinstance(domains()["physics"], Domain)
    with pytest.raises(UserError, match=f"{name!r} is not available"):
        domain(name)


def test_a_missing_dependency_names_the_extra(install):
    install("toyb", _declare("toyb", extra="toyb"), commands="import no_such_package_xyz")
    with pytest.raises(UserError, match=r"needs the package 'no_such_package_xyz'.*pip install 'sciflow\[toyb\]'"):
        domain("toyb").load_commands()


def test_a_missing_dependency_of_a_foreign_package_names_its_requirement(install):
    install("toyc", _declare("toyc", extra="mine[all]"), demo="import no_such_package_xyz")
    with pytest.raises(UserError, match=r"pip install 'mine\[all\]'"):
        domain("toyc").load_demo()


def test_a_missing_module_of_the_package_itself_is_not_blamed_on_an_extra(install):
    install("toyd", _declare("toyd", extra="toyd"))
    with pytest.raises(UserError, match=r"has no module sciflow_toyd.commands"):
        domain("toyd").load_commands()


def test_an_error_inside_a_module_is_not_hidden(install):
    install("toye", _declare("toye"), commands="raise ZeroDivisionError")
    with pytest.raises(ZeroDivisionError):
        domain("toye").load_commands()


def test_an_unknown_domain_names_the_known_ones():
    with pytest.raises(UserError, match=r"no domain 'mars'; registered: .*physics"):
        domain("mars")


@pytest.mark.parametrize("path", ["math", "math:", ":tau", ""])
def test_a_path_without_both_halves_is_refused(path):
    with pytest.raises(UserError, match="module:attribute"):
        load(path)
    with pytest.raises(UserError, match="module:attribute"):
        Domain("x", "x", commands=path, demo="math:tau")


def test_a_missing_attribute_is_named():
    with pytest.raises(UserError, match="math has no 'nothing'"):
        load("math:nothing")
