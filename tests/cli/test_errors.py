"""How the command line ends when another of several processes is gone."""

from __future__ import annotations

import pytest
import typer

from readseg.cli.errors import run


def app_that_raises(message: str) -> typer.Typer:
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        raise RuntimeError(message)

    return app


def test_a_process_that_waits_for_one_that_is_gone_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["readseg"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as end:
        run(app_that_raises("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:9000"))
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "another of the processes" in error


@pytest.mark.parametrize(("world", "message"), [("1", "Connection closed by peer"), ("2", "shapes do not match")])
def test_a_defect_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, world: str, message: str) -> None:
    monkeypatch.setattr("sys.argv", ["readseg"])
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(RuntimeError, match=message):
        run(app_that_raises(message))
