"""
DICOM in plain scripts: calls that block until they have a result. There is no reactor and no coroutine to be seen.

.. code-block:: python

    import dicomtwist.sync

    with dicomtwist.sync.connect("127.0.0.1", 11112, ae_title="ARCHIVE") as assoc:
        print(assoc.echo())

The first call starts a daemon thread, which runs Twisted's reactor on an event loop for all of them. If the application runs a
reactor in another thread, that one is used. Any number of threads may make calls at once. Ctrl-C interrupts each call.
"""

from dicomtwist.sync.answers import Answers, Retrieval
from dicomtwist.sync.association import Association
from dicomtwist.sync.connecting import connect
from dicomtwist.sync.dicomweb import DICOMwebClient, Items, Part
from dicomtwist.sync.retrieving import retrieve
from dicomtwist.sync.serving import Server, serve

__all__ = [
    "connect",
    "serve",
    "retrieve",
    "Association",
    "Answers",
    "Retrieval",
    "Server",
    "DICOMwebClient",
    "Items",
    "Part",
]
