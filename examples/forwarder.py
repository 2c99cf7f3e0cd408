"""
A program that sends all DICOM files below a folder to one or several peers, until each peer has all of them.

    python forwarder.py study/ RESEARCH=127.0.0.1:11113 CLOUD=https://pacs.example/dicom-web

The tasks are kept in the folder `.tasks` below it, so that the program goes on where it was after a crash. A peer
that is down or slow is waited for, and holds up no other. Run it again for files that have come since.
"""

import sys
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react
from twisted.internet.threads import deferToThread

from dicomtwist import AE
from dicomtwist.datasets.identity import read_identity
from dicomtwist.forwarding import Arrival, Definition, Forwarder, Selection, TaskState, TaskStore, parse_forward
from dicomtwist.part10 import NotDicomFile


class Folder:
    """The instances: the files below a folder by their SOP Instance UIDs."""

    def __init__(self, root):
        self.paths = {}
        for path in sorted(Path(root).rglob("*")):
            try:
                with open(path, "rb") as file:
                    meta = read_identity(file)
            except (OSError, NotDicomFile):
                continue  # a folder, or no DICOM file
            self.paths[meta.media_storage_sop_instance_uid] = path

    def locate(self, study, series, instance):
        return self.paths[instance]


def make_tasks(store, folder, table):
    """Make a task for each file and each peer, unless there is one."""
    (number,) = store.register([Definition.of(parse_forward([table]).rules[0], table)])
    changed = {uid: path.stat().st_mtime_ns for uid, path in folder.paths.items()}
    store.make([Arrival("", "", uid, (number,), received=at) for uid, at in changed.items()])


async def main(reactor, root, *addresses):
    peers = dict(one.split("=", 1) for one in addresses)
    folder = await deferToThread(Folder, root)
    tasks = Path(root, ".tasks")
    tasks.mkdir(exist_ok=True)
    store = TaskStore(tasks)
    await deferToThread(store.open)
    table = {"name": "all", "to": list(peers)}
    await deferToThread(make_tasks, store, folder, table)
    ae = AE("FORWARDER")
    forwarder = Forwarder(ae, store, folder, peers)
    forwarder.startService()
    under_way = Selection(states=frozenset([TaskState.WAITING, TaskState.SENDING]))
    while await deferToThread(store.find, under_way, 1):
        await deferLater(reactor, 0.2)
    await forwarder.stopService()
    await ae.shutdown()
    for task in await deferToThread(store.find, Selection(states=frozenset([TaskState.FAILED])), 1000):
        print(f"{folder.paths[task.instance]}: not taken by {task.destination[0]}: {task.said}", flush=True)
    for name in peers:
        done = Selection(destination=name, states=frozenset([TaskState.DONE]))
        count = len(await deferToThread(store.find, done, 1_000_000))
        print(f"{name} has {count} of {len(folder.paths)}", flush=True)
    store.close()


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(main(reactor, *sys.argv[1:])))
