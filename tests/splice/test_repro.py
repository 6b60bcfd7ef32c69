"""After `splice repro`, a table says what became of each stage; before it, what DVC left is mended."""

import re

from foreign import Foreign
from splice.repro import RAN, RESTORED, UNCHANGED


def table(said: str) -> dict[str, str]:
    """What became of each stage, as the table has it; seconds stand beside those alone that ran."""
    rows = re.findall(r"^(\w+) +(\D+?)(?: +(\d+\.\d)| *)$", said.partition("seconds\n")[2], re.M)
    assert all(bool(seconds) == (became == RAN) for _, became, seconds in rows), said
    return {stage: became for stage, became, _ in rows}


def test_the_table_tells_what_ran_from_what_was_restored_and_what_was_there(
    foreign: Foreign,
) -> None:
    (foreign.root / "dvc.lock").write_bytes(b"")
    said = foreign.splice("repro").stdout
    assert said.startswith("took the last commit's dvc.lock")
    assert table(said) == dict.fromkeys(("readings", "fit", "assess"), UNCHANGED)

    before = foreign.root / "params.yaml"
    text = before.read_text()
    foreign.params({"fit.rounds": 70})
    said = foreign.splice("repro").stdout
    assert "Running stage 'fit'" in said
    assert table(said) == {"readings": UNCHANGED, "fit": RAN, "assess": RAN}
    before.write_text(text)
    said = foreign.splice("repro").stdout
    assert table(said) == {"readings": UNCHANGED, "fit": RESTORED, "assess": RESTORED}


def test_where_a_stage_fails_its_exit_code_is_dvcs_and_no_table_hides_what_it_says(
    foreign: Foreign,
) -> None:
    foreign.params({"fit.rounds": "many"})
    by_dvc = foreign.dvc("repro", check=False)
    assert by_dvc.returncode
    failed = foreign.splice("repro", check=False)
    assert failed.returncode == by_dvc.returncode
    assert "failed to reproduce 'fit'" in failed.stdout.splitlines()[-1]
    assert not table(failed.stdout)
