"""
A network in memory under a clock that stands still: for tests of what is built on dicomtwist, and of dicomtwist itself.

:class:`MemoryNetwork` is the reactor that the AEs of a test are given. They listen and connect as they always do, nothing
happens before the test says so, and time passes only when the test lets it. :class:`ScriptedPeer` is a peer that does what
the test says, right or wrong.

.. code-block:: python

    network = MemoryNetwork()
    scp, scu = AE("SCP", reactor=network), AE("SCU", reactor=network)
    scp.add_supported_context(Verification)
    network.result_of(scp.start_server(11112))
    association = network.result_of(scu.associate("127.0.0.1", 11112, contexts=[build_context(Verification)]))
    assert network.result_of(association.send_c_echo()) == 0x0000
    network.advance(3600)  # an hour later the association has timed out
"""

from dicomtwist.testing.network import MemoryNetwork
from dicomtwist.testing.peer import ScriptedPeer, Sendable
from dicomtwist.testing.transport import MemoryConnection, MemoryTransport

__all__ = ["MemoryConnection", "MemoryNetwork", "MemoryTransport", "ScriptedPeer", "Sendable"]
