"""
The common parts of the tests with pynetdicom: its scripts, each in a process of its own, and their reports.
"""

from __future__ import annotations

import json
from typing import Any

from tests.interop.common import InteropTestCase
from tests.peers import Process, pynetdicom_script

# The beginning of every script. Each line of JSON that a script prints is one report.
PRELUDE = """
import json, sys, threading
from pynetdicom import AE, AllStoragePresentationContexts, _config, build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import *
from pynetdicom.sop_class import *
from pydicom.uid import AllTransferSyntaxes

class Checkpoint:
    # pynetdicom's thread that looks for requests says that it pauses a moment before it does, and for a moment after: a
    # response that comes then is taken for no request and dropped. This one knows whether the thread stands still.
    def __init__(self):
        self.standing, self._passable, self._changed = False, True, threading.Condition()

    def set(self):
        with self._changed:
            self._passable = True
            self._changed.notify_all()

    def clear(self):
        with self._changed:
            self._passable = False

    def wait(self):
        with self._changed:
            while not self._passable:
                self.standing = True
                self._changed.wait()
            self.standing = False

def checkpoint(assoc):
    return assoc.__dict__.setdefault("checkpoint", Checkpoint())

def is_paused(assoc):
    # The thread itself, in a handler that sends, looks for nothing meanwhile.
    return checkpoint(assoc).standing or assoc._kill or threading.current_thread() is assoc

Association._reactor_checkpoint = property(checkpoint, lambda assoc, value: None)
Association._is_paused = property(is_paused, lambda assoc, value: None)

SYNTAXES = [str(uid) for uid in AllTransferSyntaxes]
_config.STORE_SEND_CHUNKED_DATASET = True
CT, MR, FIND = map(str, (CTImageStorage, MRImageStorage, StudyRootQueryRetrieveInformationModelFind))
lock = threading.Lock()

def tell(**words):
    def plain(value):
        if isinstance(value, bytes):
            return value.decode("latin-1")
        return str(value)
    with lock:
        sys.stdout.write(json.dumps(words, default=plain) + "\\n")
        sys.stdout.flush()

def asked_for(user):
    return {
        "ae_title": user.ae_title,
        "maximum_length": user.maximum_length,
        "implementation_class_uid": user.implementation_class_uid,
        "implementation_version_name": user.implementation_version_name,
        "asynchronous_operations": user.asynchronous_operations,
        "roles": {str(uid): [item.scu_role, item.scp_role] for uid, item in user.role_selection.items()},
        "sop_class_extended": {str(uid): info.hex() for uid, info in user.sop_class_extended.items()},
    }
"""

SCP = (
    PRELUDE
    + """
options = json.loads(sys.argv[1])
ae = AE(options.get("ae_title", "PYNETDICOM"))
for context in AllStoragePresentationContexts:
    ae.add_supported_context(context.abstract_syntax, options.get("syntaxes", SYNTAXES), True, True)
ae.add_supported_context(Verification)
ae.add_supported_context(FIND)
for name in ("maximum_pdu_size", "maximum_associations", "require_called_aet", "require_calling_aet"):
    if name in options:
        setattr(ae, name, options[name])

def store(event):
    tell(stored=event.request.AffectedSOPInstanceUID, syntax=event.context.transfer_syntax,
         data=event.encoded_dataset(include_meta=False).hex() if options.get("tell_data", True) else "")
    return options.get("status", 0)

def user(event):
    tell(user=event.user_id_type, primary=event.primary_field, secondary=event.secondary_field or b"")
    return event.primary_field != b"mallory", b"hello"

def extended(event):
    tell(extended={str(uid): info.hex() for uid, info in event.app_info.items()})
    return {uid: info[:1] for uid, info in event.app_info.items()}

def common(event):
    tell(common={str(uid): [item.service_class_uid, [str(related) for related in item.related_general_sop_class_identification]]
                 for uid, item in event.items.items()})
    return {}

def window(event):
    tell(window=[event.nr_invoked, event.nr_performed])
    return event.nr_invoked, event.nr_performed

server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[
    (evt.EVT_C_STORE, store),
    (evt.EVT_C_ECHO, lambda event: 0),
    (evt.EVT_USER_ID, user),
    (evt.EVT_SOP_EXTENDED, extended),
    (evt.EVT_SOP_COMMON, common),
    (evt.EVT_ASYNC_OPS, window),
    (evt.EVT_ESTABLISHED, lambda event: tell(established=asked_for(event.assoc.requestor))),
    (evt.EVT_RELEASED, lambda event: tell(released=True)),
    (evt.EVT_ABORTED, lambda event: tell(aborted=True)),
])
tell(port=server.server_address[1])
threading.Event().wait()
"""
)

SCU = (
    PRELUDE
    + """
port = int(sys.argv[1])
options = json.loads(sys.argv[2])

def associate(ae, **arguments):
    # A rejection that closes the connection before the thread that asked has looked whether there is one is taken for
    # a failure to connect, so its close is held up until that thread waits for the answer.
    waits = threading.Event()

    def requested(event):
        receive_pdu = event.assoc.dul.receive_pdu

        def receive(*args, **keywords):
            waits.set()
            return receive_pdu(*args, **keywords)

        event.assoc.dul.receive_pdu = receive

    def received(event):
        waits.wait(20)

    handlers = [(evt.EVT_REQUESTED, requested), (evt.EVT_PDU_RECV, received)]
    assoc = ae.associate("127.0.0.1", port, evt_handlers=handlers, **arguments)
    primitive = assoc.acceptor.primitive
    if assoc.is_rejected:
        tell(rejected=[primitive.result, primitive.result_source, primitive.diagnostic])
    return assoc
"""
)


def told(process: Process) -> list[dict[str, Any]]:
    """Return the reports of a script, without an incomplete line."""
    return [json.loads(line) for line in bytes(process.stdout).split(b"\n")[:-1]]


class Scp:
    """
    A running pynetdicom SCP.
    """

    def __init__(self, process: Process) -> None:
        self.process = process
        self.port: int = told(process)[0]["port"]

    async def told(self, key: str, count: int = 1) -> list[Any]:
        """Return its reports under *key*, as soon as there are *count*."""

        def found() -> list[Any]:
            return [line[key] for line in told(self.process) if key in line]

        await self.process.until(lambda: len(found()) >= count, 20, f"{count} of {key}")
        return found()

    async def stored(self, count: int) -> list[tuple[str, str, bytes]]:
        """Return transfer syntax, instance and data set of each instance that it stored."""
        await self.told("stored", count)
        return [
            (line["syntax"], line["stored"], bytes.fromhex(line["data"]))
            for line in told(self.process)
            if "stored" in line
        ]


class PynetdicomTestCase(InteropTestCase):
    """
    A test that runs scripts.
    """

    async def scp(self, **options: Any) -> Scp:
        """Start a pynetdicom SCP."""
        return Scp(await pynetdicom_script(self, SCP, json.dumps(options), ready='"port"'))

    async def scu(self, port: int, source: str, **options: Any) -> list[dict[str, Any]]:
        """Run a pynetdicom client to its end; return its reports."""
        process = await pynetdicom_script(self, SCU + source, port, json.dumps(options))
        result = await process.wait()
        self.assertEqual(result.code, 0, result.text)
        return told(process)
