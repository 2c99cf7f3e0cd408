"""
DICOM in coroutines of asyncio: ``async with`` and ``async for``, without a word about reactors.

.. code-block:: python

    import asyncio
    import dicomtwist.asyncio

    async def main():
        async with dicomtwist.asyncio.connect("127.0.0.1", 11112, ae_title="ARCHIVE") as assoc:
            print(await assoc.echo())

    asyncio.run(main())

Twisted's reactor runs on the event loop of the coroutine; the first call installs it. A cancellation, such as by
``asyncio.timeout``, cancels the operation. Exceptions are those of :mod:`dicomtwist`.
"""

if __name__ == "asyncio":
    # Python's own module is meant: the folder of the package is on sys.path, such as for a file in it that is run by its path.
    import importlib.machinery
    import importlib.util
    import os
    import sys

    _here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    _path = [folder for folder in sys.path if os.path.abspath(folder or os.curdir) != _here]
    _spec = importlib.machinery.PathFinder.find_spec("asyncio", _path)
    assert _spec is not None and _spec.loader is not None
    sys.modules["asyncio"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["asyncio"])
else:
    from dicomtwist.asyncio.answers import Answers, Retrieval
    from dicomtwist.asyncio.association import Association
    from dicomtwist.asyncio.connecting import Connecting, connect
    from dicomtwist.asyncio.dicomweb import DICOMwebClient, Items, Part
    from dicomtwist.asyncio.retrieving import retrieve
    from dicomtwist.asyncio.serving import Server, Serving, serve
    from dicomtwist.eventloop.coroutines import from_deferred, to_deferred
    from dicomtwist.eventloop.loop_reactor import reactor_of_running_loop as get_reactor

    __all__ = [
        "connect",
        "serve",
        "retrieve",
        "Association",
        "Answers",
        "Retrieval",
        "Server",
        "from_deferred",
        "to_deferred",
        "get_reactor",
        "Connecting",
        "Serving",
        "DICOMwebClient",
        "Items",
        "Part",
    ]
