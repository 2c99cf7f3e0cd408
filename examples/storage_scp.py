"""
A Storage SCP that writes each image into a folder while it arrives.

    python storage_scp.py received tcp:11112:interface=127.0.0.1
    storescu 127.0.0.1 11112 image.dcm          # from another terminal

The first argument is the folder, the second an endpoint string. Images of every transfer syntax are accepted, compressed
ones too. A data set is never in memory as a whole: a thread writes each chunk, and the peer waits while the disk is slow.
The file appears under its name when it is complete, never before.
"""

import sys
from pathlib import Path

from pydicom.uid import UID
from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted.internet.threads import deferToThread

from dicomtwist import AE, STORAGE_TRANSFER_SYNTAXES, AllStoragePresentationContexts, build_contexts, evt
from dicomtwist.part10 import encode_preamble_and_meta
from dicomtwist.sop_class import Verification


class Folder:
    """Writes instances into one folder, each under its SOP Instance UID."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started = 0

    @evt.streaming
    async def store(self, event):
        uid = event.request.affected_sop_instance_uid
        if not UID(uid).is_valid:  # a UID from the network becomes a file name only if it is valid
            return 0xA900
        self.started += 1
        partial = self.path / f"{self.started}.part"
        try:
            with await deferToThread(open, partial, "wb") as file:
                await deferToThread(file.write, encode_preamble_and_meta(event.meta))
                async for chunk in event.stream:
                    await deferToThread(file.write, chunk)
            await deferToThread(partial.replace, self.path / f"{uid}.dcm")
        except OSError as error:
            print(f"cannot store {uid}: {error}", file=sys.stderr, flush=True)
            return 0xA700
        finally:
            partial.unlink(missing_ok=True)
        print(f"stored {uid} from {event.assoc.requestor.ae_title}", flush=True)
        return 0x0000


async def main(reactor, path, endpoint="tcp:11112:interface=127.0.0.1"):
    folder = Folder(Path(path))
    folder.path.mkdir(parents=True, exist_ok=True)
    ae = AE("STORE_SCP")
    ae.supported_contexts = build_contexts(AllStoragePresentationContexts, STORAGE_TRANSFER_SYNTAXES)
    ae.add_supported_context(Verification)
    await ae.start_server(endpoint, evt_handlers=[(evt.EVT_C_STORE, folder.store)])
    print("listening", flush=True)
    await Deferred()  # until Ctrl-C


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(main(reactor, *sys.argv[1:])))
