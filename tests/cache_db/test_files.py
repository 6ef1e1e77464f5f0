import os

import numpy as np
import pytest

from cache_db.files import DiskFiles, MemoryFiles, new_name


def test_a_file_is_readable_by_its_owner_only_whatever_the_umask(tmp_path):
    name, umask = new_name(".kv"), os.umask(0)
    try:
        DiskFiles(tmp_path).write(name, np.ones(3, np.uint8))
    finally:
        os.umask(umask)
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_a_file_is_never_written_through_what_stands_in_its_place(tmp_path):
    name, victim = new_name(".kv"), tmp_path / "somebody's"
    victim.write_text("mine")
    (tmp_path / (name + ".tmp")).symlink_to(victim)
    with pytest.raises(FileExistsError):
        DiskFiles(tmp_path).write(name, np.ones(3, np.uint8))
    assert victim.read_text() == "mine"


def test_files_in_memory_are_counted_while_others_write():
    files, blob = MemoryFiles(), np.ones(3, np.uint8)
    files.write("a", blob)

    def names():
        for name in "ab":
            files.write(f"another after {name}", blob)
            yield name

    assert files.sizes(names()) == [("a", 3)]
