"""Ctrl-C and a polite kill."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import threading
import time

import pytest

from musubi_core.cli.stop import stop_on_signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_asks_for_a_stop(number: signal.Signals, code: int):
    with stop_on_signals() as should_stop:
        assert not should_stop()
        signal.raise_signal(number)
        assert should_stop()
        assert should_stop.exit_code == code


def test_the_second_signal_interrupts():
    with pytest.raises(KeyboardInterrupt), stop_on_signals():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_outside_the_main_thread_nothing_is_changed():
    before = signal.getsignal(signal.SIGINT)
    seen: list[bool] = []

    def work() -> None:
        with stop_on_signals() as should_stop:
            seen.append(should_stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
    assert signal.getsignal(signal.SIGINT) is before


STUBBORN = """
import signal, time
from musubi_core.cli.stop import stop_on_signals
with stop_on_signals():
    print("ready", flush=True)
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            pass
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send SIGINT to one process")
def test_the_third_signal_ends_even_what_ignores_the_second():
    process = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        for _ in range(100):
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)
        assert process.wait(timeout=5) == -signal.SIGINT
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_signal_ends_the_waiting_for_a_person(monkeypatch: pytest.MonkeyPatch):
    def typing(text: str) -> str:
        signal.raise_signal(signal.SIGINT)
        return "never comes back by itself"

    monkeypatch.setattr("builtins.input", typing)
    with stop_on_signals() as should_stop:
        assert should_stop.ask("prompt> ") is None
        assert should_stop()
    assert should_stop.exit_code == 130


def test_the_end_of_the_input_is_no_stop(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("a cat\n"))
    with stop_on_signals() as should_stop:
        assert should_stop.ask("") == "a cat"
        assert should_stop.ask("") is None
        assert not should_stop()
