"""Threads that wait asleep: said by the programs, in time."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import app
from mrr.waiting import wait_asleep


def test_what_the_user_says_of_waiting_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    wait_asleep()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


@pytest.mark.parametrize(("program", "begins"), [("app", "app.build"), ("mrr.cli", "mrr.cli.cli")])
def test_a_program_says_it_before_torch_is_imported(program: str, begins: str) -> None:
    """OpenMP reads it once, as it is loaded."""
    code = f"""
import os, sys
import {program}
def began(**_):
    print(os.environ.get("OMP_WAIT_POLICY"), "torch" in sys.modules)
    sys.exit()
{begins} = began
{program}.main()
"""
    told = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=app.ROOT, env=told, capture_output=True, text=True
    )
    assert done.stdout == "PASSIVE False\n", done.stderr
