"""A short run of the harness `make fuzz`."""

import pytest

from harness import mutations


def test_only_defined_errors_come_out_of_the_parsers(capsys: pytest.CaptureFixture[str]) -> None:
    assert mutations.main(["--count", "1700", "--seed", "2"]) == 0
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert last[:2] == ["all", "1,700"]
    assert last[-1] == "0"
