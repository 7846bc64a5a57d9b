"""SIGINT, SIGTERM and SIGHUP: what is finished is kept, the process dies of the signal, shell loops stop."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import TIME_OUT, Photographer, Program, as_text, environment, leftovers, photo_bytes

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
STOPPED = "zero123: stopped; what was finished is kept: run it again to go on"

# The test waits for a byte from the program and the program for one from the test: no clock decides anything.
# Who runs the tests may have these signals ignored (nohup, a background job), which children inherit: hence `reset`.
PRELUDE = """
import os, signal
TELL, HEAR = int(os.environ["TEST_TELL"]), int(os.environ["TEST_HEAR"])
for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL), \
(signal.SIGHUP, signal.SIG_DFL)):
    signal.signal(number, default)
def meet():
    os.write(TELL, b".")
    os.read(HEAR, 1)
"""

WAIT_IN_STAGE = """
from zero123cli import pipeline
work = pipeline.cut_out
def cut_out(photo, *rest):
    if photo.name.startswith("wait"):
        meet()
    return work(photo, *rest)
pipeline.cut_out = cut_out
"""

WAIT_IN_WRITE = """
from zero123cli import durable
sync = durable.os.fsync
def fsync(handle):
    if os.readlink(f"/proc/self/fd/{handle}").startswith(os.getcwd() + "/out/.zero123-"):
        meet()
    sync(handle)
durable.os.fsync = fsync
"""


class Running:
    """The program under way, and a line to it."""

    def __init__(self, command: tuple[str, ...], folder: Path) -> None:
        heard, tell = os.pipe()
        hear, self.go = os.pipe()
        self.heard = heard
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment({"TEST_TELL": str(tell), "TEST_HEAR": str(hear)}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(tell, hear),
        )
        os.close(tell)
        os.close(hear)

    def wait_for_it(self) -> None:
        assert os.read(self.heard, 1) == b".", self.end()

    def let_go(self) -> None:
        os.write(self.go, b".")

    def end(self) -> tuple[int, str, str]:
        stdout, stderr = self.process.communicate(timeout=TIME_OUT)
        return self.process.returncode, as_text(stdout), as_text(stderr)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self.heard)
        os.close(self.go)


Start = Callable[..., Running]


@pytest.fixture
def start(zero123: Program) -> Iterator[Start]:
    begun: list[Running] = []

    def run(script: str, *arguments: str) -> Running:
        begun.append(Running((*zero123.wrapper(PRELUDE + script), *arguments), zero123.folder))
        return begun[-1]

    yield run
    for running in begun:
        running.close()


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_stopped_run_keeps_what_is_finished_dies_of_the_signal_and_can_go_on(
    zero123: Program, photo: Photographer, start: Start, number: signal.Signals
) -> None:
    names = ["a.png", "b.png", "wait.png", "z.png"]
    for seed, name in enumerate(names):
        photo(name, seed)
    running = start(WAIT_IN_STAGE, "cutout", *names, "-o", "out")
    running.wait_for_it()
    running.process.send_signal(number)
    code, stdout, stderr = running.end()
    assert code == -number, stderr
    assert stderr.splitlines()[-1] == STOPPED
    assert "Traceback" not in stderr
    assert stdout.splitlines() == ["out/a.png", "out/b.png"]
    assert sorted(os.listdir(zero123.folder / "out")) == ["a.png", "b.png"]

    again = zero123("cutout", *names, "-o", "out")
    assert again.stderr.count("kept from before") == 2
    assert again.stdout.splitlines() == [f"out/{name}" for name in names]
    assert "waiting for" not in again.stderr  # no lock is left behind


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks up open files in /proc")
def test_a_signal_in_the_middle_of_a_write_leaves_no_half_output(
    zero123: Program, photo: Photographer, start: Start
) -> None:
    photo()
    running = start(WAIT_IN_WRITE, "cutout", "disc.png", "-o", "out/")
    running.wait_for_it()
    assert leftovers(zero123.folder)
    running.process.send_signal(signal.SIGTERM)
    code, stdout, stderr = running.end()
    assert (code, stdout) == (-signal.SIGTERM, ""), stderr
    assert os.listdir(zero123.folder / "out") == []
    assert "kept from before" in zero123("cutout", "disc.png", "-o", "out/").stderr


def test_a_second_signal_ends_at_once(zero123: Program, photo: Photographer, start: Start) -> None:
    photo("wait.png")
    slow_end = "from zero123cli.cli.screen import screen\nscreen.note = lambda text: meet()\n"
    running = start(WAIT_IN_STAGE + slow_end, "cutout", "wait.png")
    running.wait_for_it()
    running.process.send_signal(signal.SIGINT)
    running.wait_for_it()  # it is about to say its last line, and never will
    running.process.send_signal(signal.SIGTERM)
    code, stdout, stderr = running.end()
    assert (code, stdout) == (-signal.SIGTERM, ""), stderr
    assert "Traceback" not in stderr
    zero123("cutout", "wait.png")


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_who_ignores_a_signal_from_the_start_goes_on(photo: Photographer, start: Start, number: signal.Signals) -> None:
    """A background job of a script ignores SIGINT, one under nohup SIGHUP."""
    photo("wait.png")
    ignore = f"signal.signal({number.value}, signal.SIG_IGN)\n"
    running = start(ignore + WAIT_IN_STAGE, "cutout", "wait.png")
    running.wait_for_it()
    running.process.send_signal(number)
    running.let_go()
    code, stdout, stderr = running.end()
    assert (code, stdout) == (0, "wait_cutout.png\n"), stderr


def test_a_signal_after_the_last_result_is_no_crash(photo: Photographer, start: Start) -> None:
    """While Python shuts down nobody is left to catch an exception: the signal must end the process itself."""
    photo()
    late = "import atexit\natexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))\n"
    code, stdout, stderr = start(late, "cutout", "disc.png").end()
    assert stdout == "disc_cutout.png\n"
    assert "Traceback" not in stderr, stderr
    assert code in (0, -signal.SIGTERM)


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_an_interrupt_from_the_keyboard_stops_a_shell_loop(zero123: Program, photo: Photographer, start: Start) -> None:
    """Ctrl-C on a terminal reaches the shell and the program; the shell stops because the program died of it."""
    import pty

    for name in ("wait-1.png", "wait-2.png"):
        photo(name)
    command = " ".join((*zero123.wrapper(PRELUDE + WAIT_IN_STAGE), "cutout", '"$name"'))
    loop = f"for name in wait-1.png wait-2.png; do echo item; {command}; done; echo after the loop"
    # Opening a terminal as the leader of a new session makes it the session's own, as on a desktop.
    shell = f"""
import os, signal, sys
for number in (signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
terminal = os.open(sys.argv[1], os.O_RDWR)
for number in range(3):
    os.dup2(terminal, number)
os.execvp("bash", ["bash", "--norc", "-c", {loop!r}])
"""
    master, slave = pty.openpty()
    heard, tell = os.pipe()
    hear, go = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", shell, os.ttyname(slave)],
            cwd=zero123.folder,
            env=environment({"TEST_TELL": str(tell), "TEST_HEAR": str(hear), "TERM": "xterm"}),
            pass_fds=(tell, hear),
            start_new_session=True,
        )
        os.close(tell)
        assert os.read(heard, 1) == b"."
        os.write(master, b"\x03")
        os.close(slave)
        shown = read_all(master)
        assert process.wait(TIME_OUT) == -signal.SIGINT, shown
    finally:
        for handle in (master, heard, hear, go):
            os.close(handle)
    assert shown.count("item") == 1
    assert "after the loop" not in shown
    assert STOPPED in shown
    assert "Traceback" not in shown


def read_all(terminal: int) -> str:
    """Everything written to a terminal until nobody holds it open any more."""
    shown = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # how Linux says that it is over
            break
        if not part:
            break
        shown += part
    return as_text(shown)


def test_a_run_killed_outright_harms_nothing(zero123: Program, photo: Photographer, start: Start) -> None:
    photo("a.png", 1)
    (zero123.folder / "wait.png").write_bytes(photo_bytes(2))
    running = start(WAIT_IN_STAGE, "cutout", "a.png", "wait.png", "-o", "out")
    running.wait_for_it()
    running.process.kill()
    assert running.end()[0] == -signal.SIGKILL
    again = zero123("cutout", "a.png", "wait.png", "-o", "out")
    assert again.stdout.splitlines() == ["out/a.png", "out/wait.png"]


# Training -------------------------------------------------------------------------------------------------------------

WAIT_IN_TRAINING = f"""
import importlib, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_training_launch import Line
from zero123cli.training import train

class Task(Line):
    own, held = [0], [0]
    def facts(self):
        return {{}}

importlib.import_module("zero123cli.cli.train").TASKS["volume"] = lambda *_: Task()
told = train.told_terms
def told_terms(terms):
    train.told_terms = told
    meet()
    return told(terms)
train.told_terms = told_terms
"""
TRAINING = "train train-pocket-volume --data . -o run --batch 8 --device cpu --dtype float32 --set train.judged=2"


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_stopped_training_keeps_its_last_step(zero123: Program, start: Start, number: signal.Signals) -> None:
    running = start(WAIT_IN_TRAINING, *TRAINING.split(), "--steps", "100000")
    running.wait_for_it()
    running.process.send_signal(number)
    running.let_go()
    code, _, err = running.end()
    assert (code, err.splitlines()[-1]) == (-number, STOPPED), err
    (checkpoint,) = zero123.folder.glob("run/checkpoint-*.safetensors")
    steps = int(checkpoint.stem.split("-")[1])
    assert 0 < steps < 1000, "where it stood, though nothing was due to be written"

    running = start(WAIT_IN_TRAINING, *TRAINING.split(), "--steps", str(steps + 3))
    running.wait_for_it()
    running.let_go()
    code, out, err = running.end()
    assert (code, out) == (0, "run/weights.safetensors\n"), err
    assert f"goes on from step {steps} " in err


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_is_refused_while_the_first_is_at_it(start: Start) -> None:
    first = start(WAIT_IN_TRAINING, *TRAINING.split(), "--steps", "3")
    first.wait_for_it()
    code, _, err = start(WAIT_IN_TRAINING, *TRAINING.split(), "--steps", "3").end()
    assert code == 75 and "another run is training here" in err
    first.let_go()
    assert first.end()[0] == 0
