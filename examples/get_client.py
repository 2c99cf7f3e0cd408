"""
An SCU that retrieves a study by C-GET into a folder.

    python get_client.py 127.0.0.1 11112 ARCHIVE 1.2.3.4 study/

With C-GET the peer sends the instances over the association on which they were requested. The client therefore proposes the
SCP role for each Storage SOP Class, and binds a C-STORE handler to the association. The list of Storage SOP Classes has 120
entries; together with the information model they fit into the 128 contexts of one association.
"""

import sys
from pathlib import Path

from pydicom import Dataset
from pydicom.uid import UID
from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted.internet.threads import deferToThread

from dicomtwist import (
    AE,
    STORAGE_TRANSFER_SYNTAXES,
    OperationFailed,
    StoragePresentationContexts,
    build_context,
    build_contexts,
    build_role,
    evt,
)
from dicomtwist.sop_class import StudyRootQueryRetrieveInformationModelGet as STUDY_GET


async def main(reactor, host, port, ae_title, study, path):
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)

    async def store(event):
        uid = event.request.affected_sop_instance_uid
        if not UID(uid).is_valid:
            return 0xA900
        await deferToThread((folder / f"{uid}.dcm").write_bytes, event.encoded_dataset())
        return 0x0000

    storage = build_contexts(StoragePresentationContexts, STORAGE_TRANSFER_SYNTAXES)
    contexts = [build_context(STUDY_GET), *storage]
    roles = [build_role(context.abstract_syntax, scp_role=True) for context in storage]
    keys = Dataset()
    keys.QueryRetrieveLevel = "STUDY"
    keys.StudyInstanceUID = study

    ae = AE("GET_CLIENT")
    handlers = [(evt.EVT_C_STORE, store)]
    async with await ae.associate(
        host, int(port), ae_title=ae_title, contexts=contexts, ext_neg=roles, evt_handlers=handlers
    ) as assoc:
        try:
            result = await assoc.send_c_get(keys, STUDY_GET).when_done()
        except OperationFailed as error:
            result = error.result  # the counts of a retrieval that failed
        counts = result.suboperations
        print(f"{result.status}: {counts.completed} retrieved, {counts.failed} failed", flush=True)
        for uid in result.failed_instances:
            print("failed:", uid, flush=True)


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(main(reactor, *sys.argv[1:])))
