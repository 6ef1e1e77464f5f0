import os

import pytest


@pytest.fixture(autouse=True)
def quick_fsync(monkeypatch):
    """Syncing guards against power loss, which no test here can cause; that it is asked for, and
    when, is tested by recording the calls."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
