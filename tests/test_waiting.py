"""Threads that soon stop spinning: said by the programs, in time."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import app
from mrr.waiting import spin_less


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_the_user_says_of_waiting_holds(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for known in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(known, raising=False)
    monkeypatch.setenv(name, "7")
    spin_less()
    assert {k: v for k, v in os.environ.items() if k in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")} == {
        name: "7"
    }


@pytest.mark.parametrize(("program", "begins"), [("app", "app.build"), ("mrr.cli", "mrr.cli.cli")])
def test_a_program_says_it_before_torch_is_imported(program: str, begins: str) -> None:
    """OpenMP reads it once, as it is loaded."""
    code = f"""
import os, sys
import {program}
def began(**_):
    print(os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules)
    sys.exit()
{begins} = began
{program}.main()
"""
    ours = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    told = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=app.ROOT, env=told, capture_output=True, text=True
    )
    assert done.stdout == "10000 False\n", done.stderr
