"""The relations of SOP Classes to one another and to the DIMSE services."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pynetdicom.association
import pynetdicom.sop_class
from pydicom._uid_dict import UID_dictionary
from pynetdicom import dimse_primitives, service_class
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist import sop_class
from dicomtwist.dimse.messages import RESPONSES
from dicomtwist.sop_class import ServiceClass, register_uid, sop_classes
from dicomtwist.sop_relations import (
    ANNEXES,
    carriers,
    dimse_services,
    meta_members,
    metas_of,
    query_service,
    sop_class_of_instance,
    well_known_instances,
)

SERVICES = {request.SERVICE for request in RESPONSES}

#: pynetdicom's handler of each DIMSE service.
PEER_HANDLERS = {
    "C-FIND": "_c_find_scp",
    **{f"N-{name}": f"_n_{name.lower()}_scp" for name in ("ACTION", "CREATE", "DELETE", "GET", "SET")},
    "N-EVENT-REPORT": "_n_event_report_scp",
}


def peer_services(service: type[Any]) -> set[str]:
    """Return the DIMSE services that pynetdicom's *service* class performs."""
    found = set()
    for name, handler in PEER_HANDLERS.items():
        scp = service(mock.Mock())
        request = getattr(dimse_primitives, name.replace("-", "_"))()
        with mock.patch.object(service, handler, create=True) as called:
            try:
                scp.SCP(request, mock.Mock())
            except ValueError:
                continue
        if called.called:
            found.add(name)
    return found


def is_normalized(uid: str) -> bool:
    """Return whether a SOP Class is used with DIMSE-N services."""
    return any(service.startswith("N-") for service in dimse_services(uid))


class DimseServicesTests(SynchronousTestCase):
    """The DIMSE services of SOP Classes."""

    def test_every_one_in_force(self) -> None:
        """Every SOP Class that is used with DIMSE has services, and no other SOP Class has any."""
        for of_it in ServiceClass:
            for uid in sop_classes(of_it):
                services = dimse_services(uid)
                self.assertEqual(set(services) - SERVICES, set())
                self.assertEqual(len(services), len(set(services)))
                without = of_it in (ServiceClass.MEDIA_STORAGE, ServiceClass.REAL_TIME_COMMUNICATION)
                self.assertEqual(bool(services), not without, uid.keyword)

    def test_examples(self) -> None:
        for keyword, services in (
            ("Verification", ("C-ECHO",)),
            ("CTImageStorage", ("C-STORE",)),
            ("DICOSCTImageStorage", ("C-STORE",)),
            ("RepositoryQuery", ("C-FIND",)),
            ("CompositeInstanceRetrieveWithoutBulkDataGet", ("C-GET",)),
            ("PatientStudyOnlyQueryRetrieveInformationModelMove", ("C-MOVE",)),
            ("PrinterConfigurationRetrieval", ("N-GET",)),
            ("ReferencedColorPrintManagementMeta", ()),
            ("UnifiedProcedureStepPushTrial", ()),
        ):
            self.assertEqual(dimse_services(getattr(sop_class, keyword)), services, keyword)
        meta = dimse_services(sop_class.BasicGrayscalePrintManagementMeta)
        self.assertEqual(set(meta), {"N-CREATE", "N-SET", "N-DELETE", "N-ACTION", "N-GET", "N-EVENT-REPORT"})

    def test_nothing_known(self) -> None:
        for uid in "1.2.3.4", "", "nonsense", "1.2.840.10008.1.2":
            self.assertEqual(dimse_services(uid), ())
            self.assertIsNone(query_service(uid))

    def test_peer(self) -> None:
        """The services of all SOP Classes of a service class together are those that pynetdicom performs."""
        one_service = (  # pynetdicom performs these without checking the type of the request
            service_class.VerificationServiceClass,
            service_class.StorageServiceClass,
            service_class.NonPatientObjectStorageServiceClass,
            service_class.RelevantPatientInformationQueryServiceClass,
        )
        checked = set()
        for of_it in ServiceClass:
            uids = [uid for uid in sop_classes(of_it) if dimse_services(uid)]
            if not uids:
                continue
            theirs = pynetdicom.sop_class.uid_to_service_class(uids[0])
            if issubclass(theirs, service_class.QueryRetrieveServiceClass) or theirs in one_service:
                continue  # the tests of query_service cover the former
            ours = {name for uid in uids for name in dimse_services(uid)}
            self.assertEqual(ours, peer_services(theirs), of_it)
            checked.add(of_it)
        with_n = {uid.service_class for of_it in ServiceClass for uid in sop_classes(of_it) if is_normalized(uid)}
        self.assertEqual(checked, with_n)

    def test_annexes(self) -> None:
        """Each Service Class with DIMSE services has its own annex."""
        self.assertEqual(set(ServiceClass) - set(ANNEXES), {ServiceClass.REAL_TIME_COMMUNICATION, ServiceClass.UNKNOWN})
        self.assertEqual(len(set(ANNEXES.values())), len(ANNEXES))


class QueryServiceTests(SynchronousTestCase):
    """The query services of SOP Classes."""

    def test_peer(self) -> None:
        """pynetdicom has lists of UIDs for the service classes that are like Query/Retrieve."""
        lists = (
            service_class.QueryRetrieveServiceClass._SUPPORTED_UIDS,
            service_class.BasicWorklistManagementServiceClass._SUPPORTED_UIDS,
        )
        count = 0
        for service, uids in (item for known in lists for item in known.items()):
            for uid in uids:
                self.assertEqual(query_service(uid), service, uid)
                count += 1
        self.assertGreater(count, 35)

    def test_peer_knows_no_more(self) -> None:
        """Each query here is a query in pynetdicom, except for those that it has no list for."""
        others = {
            ServiceClass.RELEVANT_PATIENT: 3,
            ServiceClass.SUBSTANCE_ADMINISTRATION: 2,
            ServiceClass.UNIFIED_PROCEDURE_STEP: 3,
        }
        known = {
            uid
            for table in (
                service_class.QueryRetrieveServiceClass._SUPPORTED_UIDS,
                service_class.BasicWorklistManagementServiceClass._SUPPORTED_UIDS,
            )
            for uids in table.values()
            for uid in uids
        }
        for of_it in ServiceClass:
            missing = [uid for uid in sop_classes(of_it) if query_service(uid) and uid not in known]
            self.assertEqual(len(missing), others.get(of_it, 0), of_it)

    def test_not_a_query(self) -> None:
        for uid in (sop_class.CTImageStorage, sop_class.Verification, sop_class.UnifiedProcedureStepPush):
            self.assertIsNone(query_service(uid))
        self.assertEqual(query_service(sop_class.UnifiedProcedureStepPull), "C-FIND")


class MetaTests(SynchronousTestCase):
    """Meta SOP Classes."""

    def test_print(self) -> None:
        """PS3.4 Tables H.3.2.2.1-1 and H.3.2.2.2-1."""
        grayscale, color = sop_class.BasicGrayscalePrintManagementMeta, sop_class.BasicColorPrintManagementMeta
        session, box, printer = sop_class.BasicFilmSession, sop_class.BasicFilmBox, sop_class.Printer
        self.assertEqual(meta_members(grayscale), (session, box, sop_class.BasicGrayscaleImageBox, printer))
        self.assertEqual(meta_members(color), (session, box, sop_class.BasicColorImageBox, printer))
        self.assertEqual(metas_of(session)[:2], (grayscale, color))
        self.assertEqual(metas_of(sop_class.BasicColorImageBox), (color,))
        self.assertEqual(metas_of(sop_class.PrintJob), ())

    def test_both_ways(self) -> None:
        metas = [uid for uid, entry in UID_dictionary.items() if entry[1] == "Meta SOP Class"]
        known = [uid for uid in metas if meta_members(uid)]
        self.assertEqual(
            {sop_class.SOPClass(uid).keyword for uid in set(metas) - set(known)},
            {"PullStoredPrintManagementMeta", "DetachedStudyManagementMeta"},
        )
        for meta in known:
            for member in meta_members(meta):
                self.assertIn(meta, metas_of(member))
                self.assertEqual(UID_dictionary[str(member)][1], "SOP Class")

    def test_no_meta(self) -> None:
        for uid in sop_class.BasicFilmBox, "1.2.3.4", "":
            self.assertEqual(meta_members(uid), ())
        self.assertEqual(metas_of("1.2.3.4"), ())


class CarriersTests(SynchronousTestCase):
    """The contexts that an operation may use."""

    def keywords(self, *arguments: Any) -> list[str]:
        return [uid.keyword.removeprefix("UnifiedProcedureStep") for uid in carriers(*arguments)]

    def test_itself_and_metas(self) -> None:
        self.assertEqual(carriers(sop_class.CTImageStorage, "C-STORE"), (sop_class.CTImageStorage,))
        self.assertEqual(carriers("1.2.3.4", "C-STORE"), ("1.2.3.4",))
        self.assertEqual(
            self.keywords(sop_class.BasicGrayscaleImageBox, "N-SET"),
            ["BasicGrayscaleImageBox", "BasicGrayscalePrintManagementMeta"],
        )

    def test_unified_procedure_step(self) -> None:
        """PS3.4 Tables CC.2-1 to CC.2-5."""
        push = sop_class.UnifiedProcedureStepPush
        for service, action, contexts in (
            ("N-CREATE", None, ["Push"]),
            ("N-GET", None, ["Push", "Pull", "Watch"]),
            ("N-SET", None, ["Pull"]),
            ("N-EVENT-REPORT", None, ["Event"]),
            ("C-FIND", None, ["Pull", "Watch", "Query"]),
            ("N-ACTION", None, ["Push", "Pull", "Watch"]),
            ("N-ACTION", 1, ["Pull"]),
            ("N-ACTION", 2, ["Push", "Watch"]),
            ("N-ACTION", 3, ["Watch"]),
            ("N-ACTION", 4, ["Watch"]),
            ("N-ACTION", 5, ["Watch"]),
            ("N-ACTION", 6, []),
            ("N-DELETE", None, []),
        ):
            self.assertEqual(self.keywords(push, service, action), contexts, (service, action))

    def test_a_context_that_is_named(self) -> None:
        """A request for one of the other UPS SOP Classes uses the context of that class."""
        pull = sop_class.UnifiedProcedureStepPull
        self.assertEqual(carriers(pull, "C-FIND"), (pull,))

    def test_peer(self) -> None:
        """pynetdicom accepts any of the other contexts for Push; they are the same as here."""
        ours = {uid for service in SERVICES for uid in carriers(sop_class.UnifiedProcedureStepPush, service)}
        theirs = {uid for name, uid in vars(pynetdicom.association).items() if name.startswith("UnifiedProcedureStep")}
        self.assertEqual(ours, theirs)


class InstancesTests(SynchronousTestCase):
    """SOP Instances with well-known UIDs."""

    def test_all(self) -> None:
        """Each one in the dictionary belongs to a SOP Class, which in turn names it."""
        for uid, entry in UID_dictionary.items():
            if entry[1] == "Well-known SOP Instance":
                of_it = sop_class_of_instance(uid)
                assert of_it is not None, entry
                self.assertIn(uid, well_known_instances(of_it))

    def test_examples(self) -> None:
        self.assertEqual(well_known_instances(sop_class.Printer), (sop_class.PrinterInstance,))
        self.assertEqual(sop_class_of_instance(sop_class.StorageManagementInstance), sop_class.InventoryCreation)
        self.assertEqual(
            well_known_instances(sop_class.UnifiedProcedureStepPush),
            (sop_class.UPSGlobalSubscriptionInstance, sop_class.UPSFilteredGlobalSubscriptionInstance),
        )
        self.assertEqual(well_known_instances(sop_class.CTImageStorage), ())
        self.assertIsNone(sop_class_of_instance("1.2.3.4"))

    def test_peer(self) -> None:
        """pynetdicom has the same UIDs under the same names."""
        names = [name for name in dir(pynetdicom.sop_class) if name.endswith("Instance")]
        self.assertEqual(len(names), 9)
        for name in names:
            self.assertEqual(getattr(sop_class, name), getattr(pynetdicom.sop_class, name))
            self.assertIsNotNone(sop_class_of_instance(getattr(sop_class, name)))


class PrivateTests(SynchronousTestCase):
    """The information that register_uid was given."""

    def setUp(self) -> None:
        self.patch(sop_class, "_entries", dict(sop_class._entries))
        self.patch(sop_class, "_uids", dict(sop_class._uids))

    def test_services(self) -> None:
        one = register_uid("1.2.3.4", "AcmeLookup", "Query/Retrieve", dimse="C-FIND")
        several = register_uid("1.2.3.5", "AcmeJobs", "Print Management", dimse=["N-CREATE", "N-GET"])
        self.assertEqual((dimse_services(one), query_service(one)), (("C-FIND",), "C-FIND"))
        self.assertEqual((dimse_services(several), query_service(several)), (("N-CREATE", "N-GET"), None))
        self.assertEqual(register_uid("1.2.3.4", "AcmeLookup", "Query/Retrieve", dimse="C-FIND"), one)
        self.assertRaises(ValueError, register_uid, "1.2.3.4", "AcmeLookup", "Query/Retrieve", dimse="C-MOVE")

    def test_services_not_told(self) -> None:
        """Without DIMSE services, those of the Service Class apply, or those that the end of the keyword suggests."""
        for uid, keyword, of_it, services in (
            ("1.2.3.4", "AcmeImageStorage", "Storage", ("C-STORE",)),
            ("1.2.3.5", "AcmeModelMove", "Query/Retrieve", ("C-MOVE",)),
            ("1.2.3.6", "AcmeLookup", "Query/Retrieve", ()),
            ("1.2.3.7", "AcmeThing", "Unknown", ()),
        ):
            self.assertEqual(dimse_services(register_uid(uid, keyword, of_it)), services)

    def test_meta(self) -> None:
        box = register_uid("1.2.3.4", "AcmeBox", "Print Management", dimse="N-SET")
        meta = register_uid("1.2.3.5", "AcmeMeta", "Print Management", members=[box, b"1.2.840.10008.5.1.1.16"])
        self.assertEqual(meta_members(meta), (box, sop_class.Printer))
        self.assertEqual(metas_of(box), (meta,))
        self.assertEqual(metas_of(sop_class.Printer)[-1], meta)
        self.assertEqual(carriers(box, "N-SET"), (box, meta))
        self.assertEqual(set(dimse_services(meta)), {"N-SET", "N-GET", "N-EVENT-REPORT"})

    def test_errors(self) -> None:
        for wrong in "C-FOUND", "c-find", ["C-FIND", ""]:
            self.assertRaises(ValueError, register_uid, "1.2.3.4", "AcmeLookup", "Query/Retrieve", dimse=wrong)
        self.assertRaises(ValueError, register_uid, "1.2.3.4", "AcmeMeta", "Print Management", members=["acme"])
        self.assertRaises(TypeError, register_uid, "1.2.3.4", "AcmeMeta", "Print Management", members=[12])
        self.assertEqual(dimse_services("1.2.3.4"), ())
