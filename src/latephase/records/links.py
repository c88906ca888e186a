"""Links in a folder that may be somebody else's: none may lead reading or writing out of it. Imports no torch."""

import os
import stat
from pathlib import Path

from .reading_files import DamagedFile

FOLDERS = ("runs", "training", "training/checkpoints", "figures", "workers")
"""Folders within that of a study or a tuning; a run's own is its reader's to judge."""
IN_PLACE = ("tune.db*", ".lock*", "workers/*")
"""Files that other packages open to write, and so through links: a storage and locks."""


def refuse_links(directory: str | os.PathLike[str]) -> None:
    """Refuse a folder in which links would lead out of it; that the folder itself is reached by one is fine.

    Single files that are links are not followed by readers, and are replaced by what is written.

    Args:
        directory: of a study or a tuning; it need not exist.

    Raises:
        DamagedFile: a folder within is a link, or a file that is written in place is one or has another name, too.
    """
    root = Path(directory)
    for path in (root / name for name in FOLDERS):
        if path.is_symlink():
            raise DamagedFile(path, f"a link to {os.readlink(path)}, and links are not followed; put a folder there")
    for path in (found for pattern in IN_PLACE for found in root.glob(pattern)):
        about = path.lstat()
        if not stat.S_ISREG(about.st_mode):
            raise DamagedFile(path, "a link or no file, through which another would be written; remove it")
        if about.st_nlink > 1 and about.st_size:
            raise DamagedFile(path, "a file with another name elsewhere, which would be written, too; put a copy there")
