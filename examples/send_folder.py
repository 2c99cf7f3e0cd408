"""
An SCU that sends all DICOM files below a folder over one association.

    python send_folder.py study/ 127.0.0.1 11112 ARCHIVE

The presentation contexts are made from the files: one for each pair of SOP Class and transfer syntax, so that every image
goes out as it is stored. If the peer refuses a file, the program prints its name and the reason, and sends the others.
"""

import sys
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted.internet.threads import deferToThread

from dicomtwist import AE, NoPresentationContext, build_context
from dicomtwist.part10 import NotDicomFile, read_file_meta

MOST_CONTEXTS = 128  # of one association (PS3.8 9.3.2.2)


def survey(folder):
    """Return the DICOM files below *folder*, and their pairs of SOP Class and transfer syntax."""
    files, pairs = [], set()
    for path in sorted(Path(folder).rglob("*")):
        try:
            with open(path, "rb") as file:
                meta, _ = read_file_meta(file)
        except (OSError, NotDicomFile):
            continue  # a folder, or no DICOM file
        files.append(path)
        pairs.add((meta.media_storage_sop_class_uid, meta.transfer_syntax_uid))
    return files, sorted(pairs)


async def main(reactor, folder, host, port, ae_title="ANY-SCP"):
    files, pairs = await deferToThread(survey, folder)
    if not files or len(pairs) > MOST_CONTEXTS:
        sys.exit(
            f"{len(files)} DICOM files of {len(pairs)} kinds in {folder}: an association takes 1 to {MOST_CONTEXTS}"
        )
    ae = AE("SEND_FOLDER")
    contexts = [build_context(sop_class, syntax) for sop_class, syntax in pairs]
    sent = 0
    async with await ae.associate(host, int(port), ae_title=ae_title, contexts=contexts) as assoc:
        for path in files:
            try:
                status = await assoc.send_c_store(path)
            except (OSError, NotDicomFile, NoPresentationContext) as error:
                print(f"{path}: not sent: {error}", flush=True)
                continue
            if status.is_success or status.is_warning:
                sent += 1
            else:
                print(f"{path}: refused: {status}", flush=True)
    print(f"{sent} of {len(files)} files sent", flush=True)


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(main(reactor, *sys.argv[1:])))
