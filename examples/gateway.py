"""
A router beside a web server, in one process: it forwards each image to another AE, and a web page shows its state.

    python gateway.py tcp:11112:interface=127.0.0.1 tcp:8080:interface=127.0.0.1 127.0.0.1 11113

The arguments are the DICOM endpoint, the HTTP endpoint, and the host and port to forward to. The gateway
acknowledges an image when the destination has acknowledged it, because it stores nothing itself. If the destination fails,
the sender gets the status 0xA700 and can send the image again later. The gateway accepts every transfer syntax. It
sends a compressed image as it is, and converts an uncompressed one if the destination accepts only another uncompressed
transfer syntax.
"""

import json
import sys
from collections import Counter

from twisted.application import strports
from twisted.application.service import MultiService
from twisted.web.resource import Resource
from twisted.web.server import Site

from dicomtwist import (
    AE,
    DEFAULT_TRANSFER_SYNTAXES,
    STORAGE_TRANSFER_SYNTAXES,
    AllStoragePresentationContexts,
    AssociationError,
    AssociationPool,
    NoPresentationContext,
    PoolError,
    StoragePresentationContexts,
    build_contexts,
    evt,
)
from dicomtwist.service import DICOMService
from dicomtwist.sop_class import Verification


class State(Resource):
    """The gateway's state as JSON."""

    def __init__(self, dicom, counts):
        super().__init__()
        self.dicom, self.counts = dicom, counts

    def render_GET(self, request):
        request.setHeader("Content-Type", "application/json")
        associations = len(self.dicom.server.active_associations)
        return json.dumps({"associations": associations, **self.counts}).encode() + b"\n"


def make_service(reactor, dicom_endpoint, http_endpoint, host, port):
    """Return the DICOM server, the pools of associations to the destination and the web server as one service."""
    counts = Counter(forwarded=0, failed=0)
    gateway = MultiService()
    pools = {}

    def pool_for(syntax):
        """Return the pool for a transfer syntax: one serves all uncompressed ones, each compressed one has its own."""
        kind = None if syntax in DEFAULT_TRANSFER_SYNTAXES else syntax
        if kind not in pools:
            client = AE("GATEWAY", reactor=reactor)
            client.requested_contexts = build_contexts(StoragePresentationContexts, kind)
            pools[kind] = AssociationPool(client, host, int(port), size=4, attempts=2)
            pools[kind].setServiceParent(gateway)
        return pools[kind]

    async def forward(event):
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        try:
            status = await pool_for(event.context.transfer_syntax).send_c_store(dataset)
        except (AssociationError, PoolError, NoPresentationContext, OSError) as error:
            print(f"not forwarded: {error}", file=sys.stderr, flush=True)
            status = 0xA700
        counts["forwarded" if status == 0x0000 else "failed"] += 1
        return status

    ae = AE("GATEWAY", reactor=reactor)
    ae.supported_contexts = build_contexts(AllStoragePresentationContexts, STORAGE_TRANSFER_SYNTAXES)
    ae.add_supported_context(Verification)
    dicom = DICOMService(ae, [dicom_endpoint], evt_handlers=[(evt.EVT_C_STORE, forward)])
    root = Resource()
    root.putChild(b"", State(dicom, counts))
    web = strports.service(http_endpoint, Site(root), reactor=reactor)

    for service in (dicom, web):
        service.setServiceParent(gateway)
    return gateway


if __name__ == "__main__":
    from twisted.internet import reactor

    gateway = make_service(reactor, *sys.argv[1:])
    gateway.startService()  # a port that is taken ends the program here
    reactor.addSystemEventTrigger("before", "shutdown", gateway.stopService)
    reactor.run()
