"""
The folder in which ``dicomtwist get`` and ``move --receive`` store instances.
"""

from __future__ import annotations

from pathlib import Path

import click

from dicomtwist.archive.storage.types import Durability, StoreUnusable
from dicomtwist.retrieval.folder import ReceivingFolder
from dicomtwist.retrieval.layout import UID_LAYOUT, InvalidLayout, Layout
from dicomtwist.retrieval.receiver import FolderReceiver, Requested

__all__ = ["FolderReceiver", "Requested", "open_folder"]


def open_folder(
    path: str, durability: str, min_free: int = 0, *, layout: str = UID_LAYOUT, overwrite: bool = False
) -> ReceivingFolder:
    """
    Return the folder *path*, which is created if it is missing.

    :param min_free: the bytes that stay free on its disk; with less, instances are refused.
    :param layout: the names of its files, see :class:`dicomtwist.retrieval.Layout`.
    :param overwrite: whether an instance replaces a file that is there already.
    :raises click.UsageError: the folder cannot be used, or the layout is wrong.
    """
    try:
        names = Layout(layout)
    except InvalidLayout as error:
        raise click.UsageError(f"--layout: {error}") from None
    folder = ReceivingFolder(
        Path(path), layout=names, durability=Durability(durability), min_free=min_free, overwrite=overwrite
    )
    try:
        folder.prepare()
    except StoreUnusable as error:
        raise click.UsageError(str(error)) from None
    return folder
