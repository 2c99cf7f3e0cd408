"""
A pool of associations that sends many images at once and continues after a restart of the peer.

    python pool_client.py 127.0.0.1 11112 ARCHIVE study/*.dcm

The pool keeps up to four associations. An operation without a response is sent again on another association, after
growing delays; an operation with a response is never sent again. The presentation contexts are those of the files, so that
compressed images are sent as they are.
"""

import sys

from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted.internet.threads import deferToThread

from dicomtwist import AE, AssociationPool, NoPresentationContext, PoolError, build_context
from dicomtwist.part10 import NotDicomFile, read_file_meta
from dicomtwist.sop_class import Verification


def contexts_of(paths):
    """Return a presentation context for each pair of SOP Class and transfer syntax; a file that cannot be read has none."""
    pairs = set()
    for path in paths:
        try:
            with open(path, "rb") as file:
                meta, _ = read_file_meta(file)
        except (OSError, NotDicomFile):
            continue
        pairs.add((meta.media_storage_sop_class_uid, meta.transfer_syntax_uid))
    return [build_context(sop_class, syntax) for sop_class, syntax in sorted(pairs)]


async def main(reactor, host, port, ae_title, *paths):
    ae = AE("POOL_CLIENT")
    ae.requested_contexts = await deferToThread(contexts_of, paths)
    ae.add_requested_context(Verification)
    async with AssociationPool(ae, host, int(port), ae_title=ae_title, size=4) as pool:
        print("C-ECHO:", await pool.send_c_echo(), flush=True)
        sending = {
            path: pool.send_c_store(path) for path in paths
        }  # all at once; the pool limits how many are under way
        for path, sent in sending.items():
            try:
                print(f"{path}: {await sent}", flush=True)
            except (PoolError, NotDicomFile, NoPresentationContext, OSError) as error:
                print(f"{path}: {error}", flush=True)
        print(f"{pool.established} associations were made", flush=True)


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(main(reactor, *sys.argv[1:])))
