"""
A router from DIMSE to DICOMweb: it stores each image that it receives at a DICOMweb server (STOW-RS).

    python dicomweb_router.py http://127.0.0.1:8080/dicom-web tcp:11112:interface=127.0.0.1
    storescu 127.0.0.1 11112 image.dcm          # from another terminal

The first argument is the URL of the server, the second an endpoint string. The router acknowledges an image when the server has
stored it, and keeps nothing: if the server fails, the sender gets the reason of the server, or 0xA700, and can send the image
again. An image is never in memory as a whole: it goes through a temporary file, byte for byte, and the sender waits while
the disk or the server is slow.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted.internet.threads import deferToThread

from dicomtwist import AE, STORAGE_TRANSFER_SYNTAXES, AllStoragePresentationContexts, build_contexts, evt
from dicomtwist.dicomweb import DICOMwebClient, DICOMwebError, StoreOutcome
from dicomtwist.part10 import encode_preamble_and_meta
from dicomtwist.sop_class import Verification


class Router:
    """Stores instances at a server, each through a file in a folder."""

    def __init__(self, client: DICOMwebClient, folder: Path) -> None:
        self.client, self.folder = client, folder
        self.started = 0

    @evt.streaming
    async def store(self, event):
        self.started += 1
        path = self.folder / f"{self.started}.dcm"
        try:
            with await deferToThread(open, path, "wb") as file:
                await deferToThread(file.write, encode_preamble_and_meta(event.meta))
                async for chunk in event.stream:
                    await deferToThread(file.write, chunk)
            results = []
            await self.client.store_instances(path, on_result=results.append)
            (result,) = results
        except (DICOMwebError, OSError) as error:
            print(f"not stored: {error}", file=sys.stderr, flush=True)
            return 0xA700
        finally:
            path.unlink(missing_ok=True)
        if result.outcome is StoreOutcome.STORED:
            print(f"stored {result.sop_instance}", flush=True)
            return 0x0000
        print(f"not stored: {result.words}", file=sys.stderr, flush=True)
        return result.reason or 0xA700


async def main(reactor, url, endpoint="tcp:11112:interface=127.0.0.1"):
    with TemporaryDirectory() as folder:
        router = Router(DICOMwebClient(url), Path(folder))
        ae = AE("ROUTER")
        ae.supported_contexts = build_contexts(AllStoragePresentationContexts, STORAGE_TRANSFER_SYNTAXES)
        ae.add_supported_context(Verification)
        await ae.start_server(endpoint, evt_handlers=[(evt.EVT_C_STORE, router.store)])
        print("listening", flush=True)
        await Deferred()  # until Ctrl-C


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(main(reactor, *sys.argv[1:])))
