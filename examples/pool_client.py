"""
A pool of associations that sends many images at once and continues after a restart of the peer.

    python pool_client.py 127.0.0.1 11112 ARCHIVE study/*.dcm

The pool keeps up to four associations. An operation without a response is sent again on another association, after
growing delays; an operation with a response is never sent again.
"""

import sys

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from dicomtwist import AE, AssociationPool, PoolError, StoragePresentationContexts
from dicomtwist.sop_class import Verification


async def main(reactor, host, port, ae_title, *paths):
    ae = AE("POOL_CLIENT")
    ae.requested_contexts = StoragePresentationContexts
    ae.add_requested_context(Verification)
    async with AssociationPool(ae, host, int(port), ae_title=ae_title, size=4) as pool:
        print("C-ECHO:", await pool.send_c_echo(), flush=True)
        sending = {
            path: pool.send_c_store(path) for path in paths
        }  # all at once; the pool limits how many are under way
        for path, sent in sending.items():
            try:
                print(f"{path}: {await sent}", flush=True)
            except (PoolError, OSError) as error:
                print(f"{path}: {error}", flush=True)
        print(f"{pool.established} associations were made", flush=True)


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(main(reactor, *sys.argv[1:])))
