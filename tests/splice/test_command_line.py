"""What both command lines say while they work."""

import io
import sys

import pytest

from splice import command_line


def test_a_log_gets_a_line_on_progress_now_and_then_and_a_short_run_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said() -> list[str]:
        counted = command_line.counted(iter("abc"), 3000, "splice import", "runs")
        assert "".join(counted) == "abc"
        return capsys.readouterr().err.splitlines()

    assert said() == []
    monkeypatch.setattr(command_line, "LINE_SECONDS", -1.0)
    assert said() == [f"splice import: {done} of 3,000 runs" for done in range(3)]


def test_a_terminal_gets_a_bar_that_is_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(command_line.counted("abc", 3, "splice import", "runs")) == ["a", "b", "c"]
    assert "splice import:   0%|" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r")
