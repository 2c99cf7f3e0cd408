"""DICOMService and ArchiveService: composition, start and stop."""

from __future__ import annotations

import gc
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.error import CannotListenError
from twisted.trial.unittest import TestCase

from dicomtwist import AE, AssociationAborted, AssociationLost
from dicomtwist.archive.archive import Duplicates
from dicomtwist.archive.storage.types import Durability
from dicomtwist.daemon.archive_service import ArchiveService
from dicomtwist.daemon.tap import Options, makeService
from dicomtwist.service import DICOMService

VERIFICATION = "1.2.840.10008.1.1"
LOOPBACK = "tcp:0:interface=127.0.0.1"


class Services(TestCase):
    """In this process, over loopback."""

    timeout = 60

    def service(self, grace: float | None = 10.0) -> DICOMService:
        """Return a service for Verification."""
        ae = AE("SCP")
        ae.add_supported_context(VERIFICATION)
        return DICOMService(ae, [LOOPBACK, LOOPBACK], grace=grace)

    async def test_in_a_multi_service(self) -> None:
        """It listens at every endpoint while its parent runs."""
        parent, child = MultiService(), self.service()
        child.setServiceParent(parent)
        self.assertIsNone(child.server)
        parent.startService()
        assert child.server is not None
        ports = [port for _, port in child.server.addresses]
        self.assertEqual(len(set(ports)), 2)
        scu = AE("SCU")
        scu.add_requested_context(VERIFICATION)
        for port in ports:
            async with await scu.associate("127.0.0.1", port) as assoc:
                self.assertTrue((await assoc.send_c_echo()).is_success)
        await parent.stopService()
        self.assertIsNone(child.server)
        for port in ports:
            await self.assertFailure(scu.associate("127.0.0.1", port), ConnectionRefusedError, Exception)

    async def test_stop_waits_and_then_aborts(self) -> None:
        """Associations may finish in the grace time; the others are aborted."""
        service = self.service(grace=0.2)
        service.startService()
        assert service.server is not None
        scu = AE("SCU")
        scu.add_requested_context(VERIFICATION)
        port = service.server.port
        finishing, lingering = await scu.associate("127.0.0.1", port), await scu.associate("127.0.0.1", port)
        stopping = service.stopService()
        self.assertTrue((await finishing.send_c_echo()).is_success)
        await finishing.release()
        self.assertFalse(stopping.called)
        await stopping
        await lingering.when_ended()
        self.assertIsInstance(lingering.end_reason, AssociationAborted | AssociationLost)

    async def test_a_busy_port(self) -> None:
        """A port that is taken raises, and the ports that already listen are closed."""
        first = self.service()
        first.startService()
        assert first.server is not None
        ae = AE("SCP")
        ae.add_supported_context(VERIFICATION)
        second = DICOMService(ae, [LOOPBACK, f"tcp:{first.server.port}:interface=127.0.0.1"])
        self.assertRaises(CannotListenError, second.startService)
        await second.stopService()
        await first.stopService()

    async def test_stop_without_start(self) -> None:
        """A service that was never started stops at once."""
        await self.service().stopService()


class Plugin(TestCase):
    """The functions that ``twist`` calls."""

    def test_defaults(self) -> None:
        """Options that are not given have their defaults."""
        options = Options()
        options.parseOptions(["--storage", self.mktemp()])
        service = makeService(options)
        assert isinstance(service, ArchiveService)
        self.assertEqual(service.ae.ae_title, "DICOMTWIST")
        self.assertEqual(service.ae.maximum_associations, 1000)
        self.assertEqual(service.grace, 10.0)
        archive = options.archive
        self.assertIs(archive.store.durability, Durability.FULL)
        self.assertIs(archive.duplicates, Duplicates.REPLACE)
        self.assertEqual(archive.store.min_free, 128 * 1024 * 1024)
        options.archive.close()

    def test_the_start_is_left_alone(self) -> None:
        """When the service runs, the garbage collector no longer examines the objects that its start created."""
        options = Options()
        options.parseOptions(["--storage", self.mktemp()])
        when_running: list[Any] = []
        self.patch(options.ae.reactor, "callWhenRunning", lambda function, *args: when_running.append((function, args)))
        service = makeService(options)
        options.archive.close()
        self.assertEqual(when_running, [])  # a service that is not started leaves the process alone
        self.patch(options.ae.reactor, "addSystemEventTrigger", lambda *_: None)
        assert isinstance(service, ArchiveService) and service.at_start is not None
        service.at_start()
        gc.unfreeze()
        self.addCleanup(gc.unfreeze)
        for function, args in when_running:
            if not args:
                function()
        self.assertGreater(gc.get_freeze_count(), 10_000)
        self.assertLess(len(gc.get_objects()), 10_000)

    def test_options(self) -> None:
        """Each option reaches its setting."""
        options = Options()
        options.parseOptions(
            [
                *("--storage", self.mktemp(), "--ae-title", "A B", "--max-pdu", "0", "--max-associations", "7"),
                *("--acse-timeout", "1", "--dimse-timeout", "2.5", "--network-timeout", "none", "--grace", "none"),
                *("--require-called-aet", "--allow-calling", "X", "--allow-calling", "Y", "--durability", "none"),
                *("--port", "tcp:0", "--port", "0", "--duplicates", "reject", "--min-free", "3G"),
            ]
        )
        service = makeService(options)
        assert isinstance(service, ArchiveService)
        settings = service.ae.settings
        self.assertEqual((settings.ae_title, settings.maximum_pdu_size, settings.maximum_associations), ("A B", 0, 7))
        self.assertEqual((settings.acse_timeout, settings.dimse_timeout, settings.network_timeout), (1.0, 2.5, None))
        self.assertTrue(settings.require_called_aet)
        self.assertEqual(settings.require_calling_aet, ["X", "Y"])
        self.assertEqual(len(options.endpoints), 2)
        self.assertIsNone(service.grace)
        archive = options.archive
        self.assertIs(archive.store.durability, Durability.NONE)
        self.assertIs(archive.duplicates, Duplicates.REJECT)
        self.assertEqual(archive.store.min_free, 3 * 1024**3)
        options.archive.close()
