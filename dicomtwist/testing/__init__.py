"""
A network in memory with a clock that only the test moves, for tests of dicomtwist and of programs that use it.

:class:`MemoryNetwork` is the reactor of the AEs in a test. They listen and connect as usual, but nothing happens before the
test flushes the network, and time passes only when the test advances it. :class:`ScriptedPeer` is a peer that does what
the test says, whether it conforms to the standard or not.

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
