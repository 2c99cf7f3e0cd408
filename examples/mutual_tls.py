"""
A server that demands a client certificate, and a client that shows one.

    python mutual_tls.py server.pem client.pem ca.pem

Each of the first two files holds a private key and its certificate, the third the certificate of the authority that issued
both. TLS needs no code: it is part of the endpoint strings, here as everywhere in dicomtwist.
"""

import sys

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from dicomtwist import AE
from dicomtwist.sop_class import Verification


async def main(reactor, server_pem, client_pem, ca_pem):
    scp = AE("TLS_SCP")
    scp.add_supported_context(Verification)
    server = await scp.start_server(
        f"dicomtls:0:interface=127.0.0.1:privateKey={server_pem}:certKey={server_pem}:trustRoots={ca_pem}"
    )

    scu = AE("TLS_SCU")
    scu.add_requested_context(Verification)
    endpoint = f"dicomtls:localhost:{server.port}:privateKey={client_pem}:certKey={client_pem}:trustRoots={ca_pem}"
    async with await scu.associate(endpoint, ae_title="TLS_SCP") as assoc:
        print("with a certificate:", await assoc.send_c_echo(), flush=True)

    try:
        await scu.associate(f"dicomtls:localhost:{server.port}:trustRoots={ca_pem}")
    except Exception as error:
        print("without:", error, flush=True)
    await server.shutdown()


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(main(reactor, *sys.argv[1:])))
