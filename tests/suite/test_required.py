"""Tests that need a program say so where it is missing, and fail in CI, where it must be."""

import pytest

from tests.support import required


@pytest.mark.parametrize(
    ("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)]
)
def test_missing_program_is_told(ci, outcome, monkeypatch, tmp_path):
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="shellcheck is not installed"):
        required.program("shellcheck", path=str(tmp_path))
