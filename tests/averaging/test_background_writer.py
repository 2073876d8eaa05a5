"""Writing in the background: order, memory, failures, and what is there when a process ends."""

import threading

import pytest
from helpers import run_python

from tf_lrtraj.averaging.background_writer import BackgroundWriter, finish_writes

WAIT = 30.0  # seconds after which something hangs


class Gate:
    """Lets writes pass one at a time."""

    def __init__(self):
        self.reached, self.opened = threading.Semaphore(0), threading.Semaphore(0)

    def pass_through(self, _):
        self.reached.release()
        assert self.opened.acquire(timeout=WAIT)


def ignore(_):
    pass


def fail(_):
    raise OSError(28, "No space left on device", "/disk/one")


def writer(folder, count=2):
    return BackgroundWriter(folder, [[] for _ in range(count)])


def test_everything_is_written_in_order_and_the_thread_ends(tmp_path):
    background, written = writer(tmp_path), []
    before = threading.active_count()
    for step in range(20):
        background.write(
            lambda buffer, step=step: buffer.append(step),
            lambda buffer: written.append(buffer.pop()),
        )
    background.wait()
    assert written == list(range(20))
    assert threading.active_count() == before


def test_two_are_in_memory_and_the_third_waits(tmp_path):
    background, gate, filled = writer(tmp_path), Gate(), []
    for step in range(2):  # both at once, though none is written
        background.write(lambda _, step=step: filled.append(step), gate.pass_through)
    assert gate.reached.acquire(timeout=WAIT)
    third = threading.Thread(
        target=lambda: background.write(lambda _: filled.append(2), gate.pass_through)
    )
    third.start()
    third.join(0.2)
    assert third.is_alive() and filled == [0, 1]
    gate.opened.release()  # one is written
    third.join(WAIT)
    assert not third.is_alive() and filled == [0, 1, 2]
    gate.opened.release(2)
    background.wait()


def test_a_write_that_fails_is_raised_once_at_the_next_call(tmp_path):
    background, gate, written = writer(tmp_path), Gate(), []

    def fail_later(buffer):
        gate.pass_through(buffer)
        fail(buffer)

    background.write(ignore, fail_later)
    background.write(ignore, written.append)
    assert gate.reached.acquire(timeout=WAIT)
    background.check()  # nothing has failed yet
    gate.opened.release()
    background.finish()
    with pytest.raises(OSError, match="No space left on device: '/disk/one'"):
        background.write(written.append, written.append)
    assert written == []  # what waited was dropped, and nothing was filled
    background.check()
    background.write(ignore, lambda _: written.append("again"))
    background.wait()
    assert written == ["again"]


@pytest.mark.parametrize("call", ["check", "wait"])
def test_a_failure_is_raised_when_asked_for(call, tmp_path):
    background = writer(tmp_path)
    background.write(ignore, fail)
    background.finish()
    with pytest.raises(OSError, match="/disk/one"):
        getattr(background, call)()
    background.wait()


def test_whoever_waits_for_memory_is_told_of_a_failure(tmp_path):
    background, gate, told = writer(tmp_path, count=1), Gate(), []

    def fail_later(buffer):
        gate.pass_through(buffer)
        fail(buffer)

    def third():
        try:
            background.write(ignore, ignore)
        except OSError as error:
            told.append(error.filename)

    background.write(ignore, fail_later)
    waiting = threading.Thread(target=third)
    waiting.start()
    gate.opened.release()
    waiting.join(WAIT)
    assert told == ["/disk/one"]


def test_memory_of_a_copy_that_fails_is_free_again(tmp_path):
    background = writer(tmp_path, count=1)

    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        background.write(interrupted, ignore)
    background.write(ignore, ignore)
    background.wait()


def test_readers_wait_for_writers_of_their_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    background, gate, written = writer(tmp_path / "a"), Gate(), []

    def work(buffer):
        gate.pass_through(buffer)
        finish_writes(tmp_path / "a")  # the writer itself does not wait
        written.append(1)

    background.write(ignore, work)
    finish_writes(tmp_path)  # another folder
    assert written == []
    threading.Timer(0.1, gate.opened.release).start()
    finish_writes(tmp_path / "link")
    assert written == [1]


AT_THE_END = """
import sys, time
from tf_lrtraj.averaging.background_writer import BackgroundWriter

def work(buffer):
    time.sleep(0.3)
    open(sys.argv[1] + "/done", "a").write("x")

background = BackgroundWriter(sys.argv[1], [[], []])
background.write(lambda _: None, work)
background.write(lambda _: None, work)
{end}
"""


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "raise ValueError", "raise KeyboardInterrupt"])
def test_python_waits_for_what_was_handed_over(end, tmp_path):
    run_python("-c", AT_THE_END.format(end=end), str(tmp_path), check=False, timeout=60)
    assert (tmp_path / "done").read_text() == "xx"


def test_a_failure_that_nobody_asked_for_is_printed_at_the_end(tmp_path):
    code = AT_THE_END.format(end="").replace("time.sleep(0.3)", "raise OSError(28, 'full', 'one')")
    # A second snapshot would ask.
    code = code.replace("background.write(lambda _: None, work)\n", "", 1)
    done = run_python("-c", code, str(tmp_path))
    assert done.stderr.strip().splitlines() == [
        f"A file in {tmp_path} was not written: [Errno 28] full: 'one'"
    ]


def test_waiting_costs_the_writer_no_time(tmp_path):
    """A step that only checks does not wait."""
    background, gate = writer(tmp_path), Gate()
    background.write(ignore, gate.pass_through)
    for _ in range(1000):
        background.check()  # would never return if it waited
    gate.opened.release()
    background.wait()
