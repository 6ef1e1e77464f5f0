"""The folder where Gradio keeps what browsers send: this app's own, and swept. Knows no Gradio.

Of an upload that breaks off Gradio leaves the part that came, and of every other an empty file.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

PREFIX = "minireranker-gradio-"
MARK = ".made-by-minireranker"  # only what has it is ever removed
LEFT_S = 2 * 3600.0  # an upload may take long to come, and wait for long until it is read
_EVERY_S = 600.0
_own: Path | None = None  # once there is one


def use_own_folder() -> None:
    """Have Gradio use such a folder from here on; called before anything of the page is built.

    It lies in $GRADIO_TEMP_DIR, or else where the system has temporary files.
    """
    global _own
    if _own is not None:
        return
    # Absolute, as Gradio makes the paths of uploads.
    where = Path(os.path.abspath(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir()))
    if os.path.isfile(where / MARK):  # of the app that started this one
        where = where.parent
    _own = own_folder(where)
    os.environ["GRADIO_TEMP_DIR"] = str(_own)
    atexit.register(remove_own_folder)
    threading.Thread(target=_sweep_for_good, args=[_own], daemon=True).start()


def remove_own_folder() -> None:
    """Remove it with all that is in it, as the process ends."""
    if _own is not None:
        shutil.rmtree(_own, ignore_errors=True)


def own_folder(where: Path) -> Path:
    """A new folder, locked as long as this process lives. Those of dead processes are removed."""
    where.mkdir(parents=True, exist_ok=True)
    for left in where.glob(f"{PREFIX}*"):
        lock = _lock(left) if os.path.isfile(left / MARK) else None  # not what is another user's
        if lock is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)
    hidden = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=where))
    (hidden / MARK).touch()
    _lock(hidden)  # before another app can find it, and take it for left over
    return hidden.rename(where / hidden.name[1:])


def _lock(folder: Path) -> int | None:
    """Descriptor of a lock that ends with the process; None where another process has it."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # gone
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def _sweep_for_good(folder: Path) -> None:
    while True:
        time.sleep(_EVERY_S)
        sweep(folder)


def sweep(folder: Path) -> None:
    """Remove what nobody will read: parts of uploads, and uploads that were never taken."""
    for path in folder.glob("[!.]*"):
        try:
            age_s = time.time() - path.stat().st_mtime
            if age_s < LEFT_S:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        except OSError:  # gone meanwhile, say: the others go on
            continue
