"""How commands end: Ctrl-C, closed pipes and full disks are one line at most, with the right exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from router_ml.errors import BundleMissing, InputError
from router_ml.events.connect import open_store
from router_ml.events.event import OutcomeEvent
from router_ml.settings import CHECKOUT
from router_ml.terminal import format_table, run_command

FULL = Path("/dev/full")
ROUTER = ("-m", "router_ml.cli")


@pytest.fixture
def environment(tiny_bundle: Path, tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(CHECKOUT),
        "ROUTER_ML_BUNDLE": str(tiny_bundle),
        "ROUTER_ML_STATE_DIR": str(tmp_path / "state"),
    }


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(
    ("command", "status"),
    [((*ROUTER, "demo"), 2), ((*ROUTER, "route", "--json", "x"), 2), (("-m", "training.promote"), 2)],
)
def test_a_full_disk_is_one_line(environment: dict[str, str], command: tuple[str, ...], status: int) -> None:
    with FULL.open("wb") as full:
        done = subprocess.run(
            [sys.executable, *command], stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False
        )
    assert done.returncode == status
    assert [line.partition(": ")[2] for line in done.stderr.splitlines()] == [
        "cannot write the output: No space left on device"
    ]


@pytest.mark.parametrize("command", [(*ROUTER, "models"), ("-m", "training.promote")])
def test_a_closed_pipe_ends_quietly(environment: dict[str, str], command: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, *command], stdout=write, stderr=subprocess.PIPE, text=True, env=environment, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_interrupt_is_one_line(environment: dict[str, str]) -> None:
    child = subprocess.Popen(
        [sys.executable, *ROUTER, "route", "--json"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(b"".join(b"query %d\n" % i for i in range(256)))
    child.stdin.flush()
    child.stdout.readline()  # it is at work, and waits for more
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    _, error = child.communicate(timeout=60)
    assert (child.returncode, error) == (130, b"router-ml: interrupted\n")


def test_a_closed_standard_output_is_no_error(environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m router_ml.cli models >&-"],
        stderr=subprocess.PIPE, text=True, env=environment, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_events_are_exported_to_standard_output(environment: dict[str, str], tmp_path: Path) -> None:
    store = open_store(tmp_path / "state")
    store.append([OutcomeEvent("d", "m", 1.0, 1.0)])
    store.close()
    done = subprocess.run(
        [sys.executable, *ROUTER, "events", "export"],
        capture_output=True, text=True, env=environment, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout == '{"query_id": "d", "model": "m", "success": 1.0, "latency_s": 1.0}\n'
    assert done.stderr == "1 outcomes written to -\n"
    assert not (tmp_path / "-").exists()


def test_the_status_follows_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    def raises(error: BaseException) -> int:
        def command() -> int:
            raise error

        return run_command("x", command, failure=1)

    assert raises(InputError("bad\ninput")) == 2
    assert raises(BundleMissing("none")) == 1
    assert raises(PermissionError(13, "Permission denied", "/root/x")) == 1
    assert raises(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err.splitlines() == [
        "x: bad input", "x: none", "x: cannot use /root/x: Permission denied", "x: interrupted"]  # fmt: skip
    assert run_command("x", lambda: None) == 0


ROWS = [("model", "n", "reason"), ("a:1b", "1,000", "because it is"), ("longer:7b", "3", "the last cell is cut " * 3)]


def test_a_table_fits_its_terminal_by_its_last_cell() -> None:
    lines = format_table(ROWS, left=(0, 2), columns=40).splitlines()
    assert lines[0] == "model          n  reason"
    assert lines[1] == "a:1b       1,000  because it is"
    assert lines[2] == "longer:7b      3  the last cell is cut …"
    assert max(map(len, lines)) == 40


def test_a_table_in_a_file_is_not_cut_and_has_no_styles(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, *ROUTER, "route", "check email"], capture_output=True, text=True, check=True,
        env={**environment, "COLUMNS": "40", "TERM": "xterm"},
    )  # fmt: skip
    assert "\x1b" not in done.stdout
    assert "…" not in done.stdout
