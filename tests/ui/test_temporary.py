"""The app's temporary folder: what broke off and what a dead app left there goes, nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.ui.conftest import PATIENCE_S
from ui.temporary import LEFT_S, PREFIX, own_folder, sweep


def aged(path: Path, age_s: float) -> Path:
    """The path, as if it had last been written so long ago."""
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def another_app(
    where: Path, ending: str = "sys.stdin.read()"
) -> tuple[subprocess.Popen[str], Path]:
    """A process with a folder of its own there, which lives until its input ends."""
    code = (
        "import os, sys; from ui.temporary import use_own_folder; use_own_folder()\n"
        f"print(os.environ['GRADIO_TEMP_DIR'], flush=True); {ending}"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "GRADIO_TEMP_DIR": str(where)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    return process, folder


@pytest.mark.fault
def test_only_the_folder_of_a_dead_app_is_removed_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "something-else").mkdir()
    process, theirs = another_app(tmp_path)
    try:
        (theirs / "upload.pdf").write_bytes(b"a visitor's")
        mine = own_folder(tmp_path)
        assert mine.is_dir() and (theirs / "upload.pdf").exists(), "that app is alive"
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE_S)
        third = own_folder(tmp_path)
    finally:
        process.kill()
        process.communicate()
    assert {path.name for path in tmp_path.iterdir()} == {mine.name, third.name, "something-else"}
    assert mine.name.startswith(PREFIX) and mine.stat().st_mode & 0o777 == 0o700


def test_what_no_app_made_stays_whatever_it_is_called(tmp_path: Path) -> None:
    theirs, temp = tmp_path / f"{PREFIX}store", tmp_path / f"{PREFIX}temp"
    for folder in (theirs, temp):
        (folder / "files").mkdir(parents=True)
    process, folder = another_app(temp, ending="sys.exit()")
    process.communicate(timeout=PATIENCE_S)
    own_folder(tmp_path)
    assert folder.parent == temp, "what the user has named is used, not what is beside it"
    assert (theirs / "files").is_dir() and (temp / "files").is_dir()


def test_an_app_that_ends_takes_its_folder_along(tmp_path: Path) -> None:
    process, folder = another_app(tmp_path, ending="sys.exit()")
    process.communicate(timeout=PATIENCE_S)
    assert folder.parent == tmp_path and not list(tmp_path.iterdir())


def test_a_relative_folder_is_made_absolute_as_the_paths_of_uploads_are(tmp_path: Path) -> None:
    process, folder = another_app(Path(os.path.relpath(tmp_path)), ending="sys.exit()")
    process.communicate(timeout=PATIENCE_S)
    assert folder.parent == tmp_path


def test_a_broken_upload_goes_and_one_that_comes_or_waits_does_not(tmp_path: Path) -> None:
    comes, broken = tmp_path / "tmpcomes", tmp_path / "tmpbroken"
    waits, forgotten = tmp_path / "waits", tmp_path / "forgotten"
    for path in (comes, broken):
        path.write_bytes(b"part")
    for folder in (waits, forgotten):
        folder.mkdir()
        (folder / "whole.pdf").write_bytes(b"pages")
    aged(broken, LEFT_S + 1)
    aged(comes, LEFT_S - 60)
    aged(waits, LEFT_S - 60)
    aged(forgotten, LEFT_S + 1)
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"tmpcomes", "waits"}
    assert (waits / "whole.pdf").read_bytes() == b"pages"


def test_the_app_uses_a_folder_of_its_own(tmp_path: Path) -> None:
    code = (
        "import app; from ui.examples import Examples; from gradio.utils import get_upload_folder\n"
        "demo, bench = app.build(Examples(finished=True)); bench.close()\n"
        "print(get_upload_folder(), demo.GRADIO_CACHE)"
    )
    where = {"GRADIO_TEMP_DIR": str(tmp_path / "temp"), "MRR_CACHE_DIR": str(tmp_path / "store")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **where},
        capture_output=True,
        text=True,
        check=True,
    )
    folder, cache = done.stdout.split()
    assert folder == cache
    assert Path(folder).parent == tmp_path / "temp" and Path(folder).name.startswith(PREFIX)
