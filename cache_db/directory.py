"""The folder of a store: made if it can be, refused in a sentence if it cannot be trusted."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from mrr.errors import InvalidConfig

# SQLite's write-ahead log needs memory shared between processes, and all of the store needs
# locks that the kernel drops when a process dies. Neither can be had over a network.
_NETWORK = {"9p", "afs", "ceph", "cifs", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "smb3"}


@dataclass(frozen=True, slots=True)
class Directory:
    """Where things lie. files: pictures and K/V. sessions: lock files of open stores."""

    database: Path
    files: Path
    sessions: Path


def default_store() -> Path:
    """$MRR_CACHE_DIR, or the user's cache folder: never the working directory."""
    named = os.environ.get("MRR_CACHE_DIR")  # may hold a ~ that no shell has expanded
    return Path(os.path.expanduser(named)) if named else user_cache_path("minireranker")


def default_budget() -> int:
    """Bytes of $MRR_BUDGET_GIB, or of 10 GiB. Raises InvalidConfig for what is no size."""
    named = os.environ.get("MRR_BUDGET_GIB", "").strip() or "10"
    try:
        gib = float(named)
    except ValueError:
        gib = math.nan
    if not 2**-30 <= gib < 2**33:  # a byte, and what 63 bits can count
        raise InvalidConfig(f"MRR_BUDGET_GIB is {named!r}; it is a number of GiB, such as 20.")
    return int(gib * 2**30)


def prepare(root: Path) -> Directory:
    """Make the folders, readable by their owner only.

    Raises
    ------
    OSError: if the folder cannot be made or written to, or lies on a network file system.
    """
    directory = Directory(root / "store.db", root / "files", root / "sessions")
    for folder in (root, directory.files, directory.sessions):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(0, "The folder cannot be written to")
    if network := network_filesystem(root.resolve(), read_mounts()):
        raise OSError(0, f"The folder lies on a network file system ({network})")
    return directory


def read_mounts() -> str:
    """The mount table: a line each of device, mount point, type, ...; empty if there is none."""
    try:
        return Path("/proc/mounts").read_text("utf-8", errors="replace")
    except OSError:
        return ""


def network_filesystem(path: Path, mounts: str) -> str | None:
    """Type of the network file system that an absolute path lies on, or None."""
    best, kind = -1, ""
    for line in mounts.splitlines():
        _, point, this_kind, *_ = line.split(" ")
        mount = Path(point.replace("\\040", " "))
        # Of two mounts on one point the later one is on top.
        if path.is_relative_to(mount) and len(mount.parts) >= best:
            best, kind = len(mount.parts), this_kind
    return kind if kind in _NETWORK or kind.startswith("fuse.") else None
