"""Training processes that somebody else begins for a connection, as systemd does; and what becomes of it where nobody can."""

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rpi_daemon.retrain.launch import Child, Unit, begin, listener_of
from rpi_daemon.retrain.process import Training, TrainingError

RESULT = json.dumps({"result": {"material": {}, "why_not": "too little", "not_confined": []}})
WORD = json.dumps({"stage": "reading", "done": 0.5})


@contextmanager
def listening(folder: Path, script: str | None) -> Iterator[tuple[Path, list[int]]]:
    """Begins a shell for the first connection, or drops it; what the shells ended with, once that is over."""
    path = listener_of(folder / "run")
    ended: list[int] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            if script is None:
                return
            process = subprocess.Popen(["sh", "-c", script], stdin=connection.fileno(), stdout=connection.fileno())
        ended.append(process.wait())

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        server = threading.Thread(target=serve)
        server.start()
        try:
            yield path, ended
        finally:
            server.join(60.0)


def training(listener: Path) -> Training:
    return Training({"out": "/nowhere"}, memory_mb=500.0, minutes=3.0, listener=listener)


def test_the_order_goes_in_and_the_result_comes_out(tmp_path: Path) -> None:
    order = tmp_path / "order"
    script = f"read order; echo '{WORD}'; echo \"$order\" > {order}; echo '{RESULT}'"
    heard: list[tuple[str, float]] = []
    with listening(tmp_path, script) as (path, ended):
        result = training(path).run(lambda stage, done: heard.append((stage, done)))
    assert (result.why_not, result.not_confined, heard, ended) == ("too little", (), [("reading", 0.5)], [0])
    given = json.loads(order.read_text())
    assert (given["out"], given["parent"], given["memory_mb"]) == ("/nowhere", None, 500.0)


def test_one_that_hears_nothing_any_more_is_killed(tmp_path: Path) -> None:
    """Stopped, it would never see that the connection has ended."""
    with listening(tmp_path, f"read order; echo '{WORD}'; kill -STOP $$") as (path, ended):
        asked = training(path)
        with pytest.raises(TrainingError, match="was ended: the hours are over"):
            asked.run(lambda *_: asked.cancel("the hours are over"))
    assert ended == [-9]


def test_one_that_has_said_nothing_yet_ends_by_its_connection(tmp_path: Path) -> None:
    with listening(tmp_path, "read order; cat; exit 7") as (path, ended):
        process, _ = begin(path)
        process.connection.sendall(b"{}\n")
        process.kill()
        assert "no word came from its unit" in process.wait()
    assert ended == [7]


def test_a_dropped_connection_is_no_result(tmp_path: Path) -> None:
    """As systemd does when another training runs."""
    with listening(tmp_path, None) as (path, _), pytest.raises(TrainingError, match="no word came from its unit"):
        training(path).run()


def test_nobody_listens_there(tmp_path: Path) -> None:
    path = tmp_path / "run-retrain.sock"
    for there in (False, True):
        if there:
            with socket.socket(socket.AF_UNIX) as gone:
                gone.bind(str(path))
        process, note = begin(path)
        process.kill()
        assert process.wait() == "exit code -9"
        assert isinstance(process, Child)
        assert note == (
            f"a unit of its own: {path}: Connection refused; it is in the control group of its parent" if there else ""
        )
    with pytest.raises(ConnectionRefusedError):
        Unit(path)
