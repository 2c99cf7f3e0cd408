"""SOP Classes: their names, keywords and Service Classes."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from pydicom._uid_dict import UID_dictionary
from pydicom.uid import UID
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist import sop_class
from dicomtwist.sop_class import (
    CTImageStorage,
    PatientRootQueryRetrieveInformationModelFind,
    ServiceClass,
    SOPClass,
    Verification,
    VerificationSOPClass,
    check_uid,
    common_storage_classes,
    register_uid,
    sop_classes,
    uid_to_service_class,
    uid_to_sop_class,
)

# The keywords that pynetdicom 3.0.4 offers, including its misspelt ones.
KEYWORDS = """
    AcquisitionContextSRStorage AdvancedBlendingPresentationStateStorage AmbulatoryECGWaveformStorage
    ArterialPulseWaveformStorage AutorefractionMeasurementsStorage BasicAnnotationBox BasicColorImageBox
    BasicColorPrintManagementMeta BasicFilmBox BasicFilmSession BasicGrayscaleImageBox
    BasicGrayscalePrintManagementMeta BasicStructuredDisplayStorage BasicTextSRStorage
    BasicVoiceAudioWaveformStorage BlendingSoftcopyPresentationStateStorage BodyPositionWaveformStorage
    BreastImagingRelevantPatientInformationQuery BreastProjectionXRayImageStorageForPresentation
    BreastProjectionXRayImageStorageForProcessing BreastTomosynthesisImageStorage
    CArmPhotonElectronRadiationRecordStorage CArmPhotonElectronRadiationStorage
    CTDefinedProcedureProtocolStorage CTImageStorage CTPerformedProcedureProtocolStorage
    CardiacElectrophysiologyWaveformStorage CardiacRelevantPatientInformationQuery ChestCADSRStorage
    ColonCADSRStorage ColorPaletteInformationModelFind ColorPaletteInformationModelGet
    ColorPaletteInformationModelMove ColorPaletteStorage ColorSoftcopyPresentationStateStorage
    CompositeInstanceRetrieveWithoutBulkDataGet CompositeInstanceRootRetrieveGet
    CompositeInstanceRootRetrieveMove CompositingPlanarMPRVolumetricPresentationStateStorage
    Comprehensive3DSRStorage ComprehensiveSRStorage ComputedRadiographyImageStorage
    ConfocalMicroscopyImageStorage ConfocalMicroscopyTiledPyramidalImageStorage
    ContentAssessmentResultsStorage CornealTopographyMapStorage DefinedProcedureProtocolInformationModelFind
    DefinedProcedureProtocolInformationModelGet DefinedProcedureProtocolInformationModelMove
    DeformableSpatialRegistrationStorage DermoscopicPhotographyImageStorage
    DigitalIntraOralXRayImageStorageForPresentation DigitalIntraOralXRayImageStorageForProcessing
    DigitalMammographyXRayImageStorageForPresentation DigitalMammographyXRayImageStorageForProcessing
    DigitalXRayImageStorageForPresentation DigitalXRayImageStorageForProcessing DisplaySystem
    DisplaySystemInstance ElectromyogramWaveformStorage ElectrooculogramWaveformStorage
    EncapsulatedCDAStorage EncapsulatedMTLStorage EncapsulatedOBJStorage EncapsulatedPDFStorage
    EncapsulatedSTLStorage EnhancedCTImageStorage EnhancedContinuousRTImageStorage
    EnhancedMRColorImageStorage EnhancedMRImageStorage EnhancedPETImageStorage EnhancedRTImageStorage
    EnhancedSRStorage EnhancedUSVolumeStorage EnhancedXAImageStorage EnhancedXRFImageStorage
    EnhancedXRayRadiationDoseSRStorage ExtensibleSRStorage General32bitECGWaveformStorage
    GeneralAudioWaveformStorage GeneralECGWaveformStorage GeneralRelevantPatientInformationQuery
    GenericImplantTemplateInformationModelFind GenericImplantTemplateInformationModelGet
    GenericImplantTemplateInformationModelMove GenericImplantTemplateStorage
    GrayscalePlanarMPRVolumetricPresentationStateStorage GrayscaleSoftcopyPresentationStateStorage
    HangingProtocolInformationModelFind HangingProtocolInformationModelGet
    HangingProtocolInformationModelMove HangingProtocolStorage HeightMapSegmentationStorage
    HemodynamicWaveformStorage ImplantAssemblyTemplateInformationModelFind
    ImplantAssemblyTemplateInformationModelGet ImplantAssemblyTemplateInformationModelMove
    ImplantAssemblyTemplateStorage ImplantTemplateGroupInformationModelFind
    ImplantTemplateGroupInformationModelGet ImplantTemplateGroupInformationModelMove
    ImplantTemplateGroupStorage ImplantationPlanSRStorage InstanceAvailabilityNotification
    IntraocularLensCalculationsStorage IntravascularOpticalCoherenceTomographyImageStorageForPresentation
    IntravascularOpticalCoherenceTomographyImageStorageForProcessing InventoryCreation InventoryFind
    InventoryGet InventoryMove InventoryStorage KeratometryMeasurementsStorage
    KeyObjectSelectionDocumentStorage LabelMapSegmentationStorage LegacyConvertedEnhancedCTImageStorage
    LegacyConvertedEnhancedMRImageStorage LegacyConvertedEnhancedPETImageStorage
    LensometryMeasurementsStorage MRImageStorage MRSpectroscopyStorage
    MacularGridThicknessAndVolumeReportStorage MammographyCADSRStorage MediaCreationManagement
    MediaStorageDirectoryStorage MicroscopyBulkSimpleAnnotationsStorage ModalityPerformedProcedureStep
    ModalityPerformedProcedureStepNotification ModalityPerformedProcedureStepRetrieve
    ModalityWorklistInformationFind MultiFrameGrayscaleByteSecondaryCaptureImageStorage
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage MultiFrameSingleBitSecondaryCaptureImageStorage
    MultiFrameTrueColorSecondaryCaptureImageStorage MultichannelRespiratoryWaveformStorage
    MultipleVolumeRenderingVolumetricPresentationStateStorage NuclearMedicineImageStorage
    OphthalmicAxialMeasurementsStorage OphthalmicOpticalCoherenceTomographyEnFaceImageStorage
    OphthalmicPhotography16BitImageStorage OphthalmicPhotography8BitImageStorage
    OphthalmicThicknessMapStorage OphthalmicTomographyImageStorage
    OphthalmicVisualFieldStaticPerimetryMeasurementsStorage
    OphthlamicOpticalCoherenceTomographyBscanVolumeAnalysisStorage ParametricMapStorage
    PatientRadiationDoseSRStorage PatientRootQueryRetrieveInformationModelFind
    PatientRootQueryRetrieveInformationModelGet PatientRootQueryRetrieveInformationModelMove
    PatientStudyOnlyQueryRetrieveInformationModelFind PatientStudyOnlyQueryRetrieveInformationModelGet
    PatientStudyOnlyQueryRetrieveInformationModelMove PerformedImagingAgentAdministrationSRStorage
    PhotoacousticImageStorage PlannedImagingAgentAdministrationSRStorage
    PositronEmissionTomographyImageStorage PresentationLUT PrintJob Printer PrinterConfigurationRetrieval
    PrinterConfigurationRetrievalInstance PrinterInstance ProceduralEventLogging
    ProceduralEventLoggingInstance ProcedureLogStorage ProductCharacteristicsQuery
    ProtocolApprovalInformationModelFind ProtocolApprovalInformationModelGet
    ProtocolApprovalInformationModelMove ProtocolApprovalStorage PseudoColorSoftcopyPresentationStageStorage
    RTBeamsDeliveryInstructionStorage RTBeamsTreatmentRecordStorage
    RTBrachyApplicationSetupDeliveryInstructionsStorage RTBrachyTreatmentRecordStorage
    RTConventionalMachineVerification RTDoseStorage RTImageStorage RTIonBeamsTreatmentRecordStorage
    RTIonMachineVerification RTIonPlanStorage RTPatientPositionAcquisitionInstructionStorage
    RTPhysicianIntentStorage RTPlanStorage RTRadiationRecordSetStorage RTRadiationSalvageRecordStorage
    RTRadiationSetDeliveryInstructionStorage RTRadiationSetStorage RTSegmentAnnotationStorage
    RTStructureSetStorage RTTreatmentPreparationStorage RTTreatmentSummaryRecordStorage
    RadiopharmaceuticalRadiationDoseSRStorage RawDataStorage RealWorldValueMappingStorage RepositoryQuery
    RespiratoryWaveformStorage RoboticArmRadiationRecordStorage RoboticArmRadiationStorage
    RoutineScalpElectroencephalogramWaveformStorage SecondaryCaptureImageStorage SegmentationStorage
    SegmentedVolumeRenderingVolumetricPresentationStateStorage SimplifiedAdultEchoSRStorage
    SleepElectroencephalogramWaveformStorage SpatialFiducialsStorage SpatialRegistrationStorage
    SpectaclePrescriptionReportStorage StereometricRelationshipStorage StorageCommitmentPushModel
    StorageCommitmentPushModelInstance StorageManagementInstance StudyRootQueryRetrieveInformationModelFind
    StudyRootQueryRetrieveInformationModelGet StudyRootQueryRetrieveInformationModelMove
    SubjectiveRefractionMeasurementsStorage SubstanceAdministrationLogging
    SubstanceAdministrationLoggingInstance SubstanceApprovalQuery SurfaceScanMeshStorage
    SurfaceScanPointCloudStorage SurfaceSegmentationStorage TomotherapeuticRadiationRecordStorage
    TomotherapeuticRadiationStorage TractographyResultsStorage TwelveLeadECGWaveformStorage
    UPSFilteredGlobalSubscriptionInstance UPSGlobalSubscriptionInstance UltrasoundImageStorage
    UltrasoundMultiFrameImageStorage UnifiedProcedureStepEvent UnifiedProcedureStepPull
    UnifiedProcedureStepPush UnifiedProcedureStepQuery UnifiedProcedureStepWatch VLEndoscopicImageStorage
    VLMicroscopicImageStorage VLPhotographicImageStorage VLSlideCoordinatesMicroscopicImageStorage
    VLWholeSlideMicroscopyImageStorage VariableModalityLUTSoftcopyPresentationStageStorage Verification
    VideoEndoscopicImageStorage VideoMicroscopicImageStorage VideoPhotographicImageStorage
    VisualAcuityMeasurementsStorage VolumeRenderingVolumetricPresentationStateStorage
    WaveformAcquisitionPresentationStateStorage WaveformAnnotationSRStorage WaveformPresentationStateStorage
    WideFieldOphthalmicPhotography3DCoordinatesImageStorage
    WideFieldOphthalmicPhotographyStereographicProjectionImageStorage XADefinedProcedureProtocolStorage
    XAPerformedProcedureProtocolStorage XAXRFGrayscaleSoftcopyPresentationStateStorage
    XRay3DAngiographicImageStorage XRay3DCraniofacialImageStorage XRayAngiographicImageStorage
    XRayRadiationDoseSRStorage XRayRadiofluoroscopicImageStorage
"""

# The number of current SOP Classes of each Service Class, as of pydicom 3.0 and the four that are newer.
COUNTS = {
    ServiceClass.VERIFICATION: 1,
    ServiceClass.STORAGE: 170,
    ServiceClass.NON_PATIENT_OBJECT: 9,
    ServiceClass.MEDIA_STORAGE: 1,
    ServiceClass.QUERY_RETRIEVE: 13,
    ServiceClass.COLOR_PALETTE: 3,
    ServiceClass.DEFINED_PROCEDURE_PROTOCOL: 3,
    ServiceClass.HANGING_PROTOCOL: 3,
    ServiceClass.IMPLANT_TEMPLATE: 9,
    ServiceClass.PROTOCOL_APPROVAL: 3,
    ServiceClass.INVENTORY: 3,
    ServiceClass.BASIC_WORKLIST: 1,
    ServiceClass.RELEVANT_PATIENT: 3,
    ServiceClass.SUBSTANCE_ADMINISTRATION: 2,
    ServiceClass.PROCEDURE_STEP: 3,
    ServiceClass.PRINT_MANAGEMENT: 11,
    ServiceClass.STORAGE_COMMITMENT: 1,
    ServiceClass.STORAGE_MANAGEMENT: 1,
    ServiceClass.APPLICATION_EVENT: 2,
    ServiceClass.INSTANCE_AVAILABILITY: 1,
    ServiceClass.MEDIA_CREATION: 1,
    ServiceClass.DISPLAY_SYSTEM: 1,
    ServiceClass.UNIFIED_PROCEDURE_STEP: 5,
    ServiceClass.RT_MACHINE_VERIFICATION: 2,
    ServiceClass.REAL_TIME_COMMUNICATION: 4,
}


class NamesTests(SynchronousTestCase):
    """The SOP Classes as attributes of the module."""

    def test_verification(self) -> None:
        """Verification is a UID with a name, a keyword and a Service Class."""
        self.assertIsInstance(Verification, UID)
        self.assertIsInstance(Verification, SOPClass)
        self.assertEqual(Verification, "1.2.840.10008.1.1")
        self.assertEqual(Verification.name, "Verification SOP Class")
        self.assertEqual(Verification.keyword, "Verification")
        self.assertIs(Verification.service_class, ServiceClass.VERIFICATION)
        self.assertEqual(hash(Verification), hash("1.2.840.10008.1.1"))

    def test_others(self) -> None:
        """The other SOP Classes have them, too."""
        self.assertEqual(CTImageStorage, "1.2.840.10008.5.1.4.1.1.2")
        self.assertEqual(CTImageStorage.name, "CT Image Storage")
        self.assertEqual(PatientRootQueryRetrieveInformationModelFind, "1.2.840.10008.5.1.4.1.2.1.1")
        self.assertEqual(PatientRootQueryRetrieveInformationModelFind.service_class, "Query/Retrieve")

    def test_old_suffix(self) -> None:
        """The older names that end in SOPClass have the same meaning."""
        self.assertEqual(VerificationSOPClass, Verification)
        self.assertEqual(sop_class.BasicFilmSessionSOPClass, sop_class.BasicFilmSession)
        self.assertEqual(
            sop_class.ModalityWorklistInformationFindSOPClass, sop_class.ModalityWorklistInformationModelFind
        )

    def test_every_keyword(self) -> None:
        """No keyword that pynetdicom has is missing."""
        keywords = KEYWORDS.split()
        self.assertEqual(len(keywords), 261)
        missing = [name for name in keywords if not isinstance(getattr(sop_class, name, None), UID)]
        self.assertEqual(missing, [])
        self.assertEqual(set(keywords) - set(dir(sop_class)), set())

    def test_every_keyword_of_the_dictionary(self) -> None:
        """Every SOP Class that pydicom can name is available, including the retired ones."""
        for uid, (name, kind, _, _, keyword) in UID_dictionary.items():
            if kind.endswith("SOP Class") and keyword:
                found = getattr(sop_class, keyword)
                self.assertEqual((found, found.name, found.keyword), (uid, name, keyword))

    def test_aliases_lead_to_the_dictionary(self) -> None:
        """Each alias names an existing keyword, and hides none."""
        for alias, keyword in sop_class._ALIASES.items():
            self.assertEqual(getattr(sop_class, alias).keyword, keyword)
            self.assertNotIn(alias, sop_class._uids)

    def test_newer_than_the_dictionary(self) -> None:
        """SOP Classes and transfer syntaxes that pydicom may not know have names, too."""
        height_map = sop_class.HeightMapSegmentationStorage
        self.assertEqual(height_map, "1.2.840.10008.5.1.4.1.1.66.8")
        self.assertEqual(height_map.name, "Height Map Segmentation Storage")
        self.assertEqual(height_map.keyword, "HeightMapSegmentationStorage")
        self.assertIs(height_map.service_class, ServiceClass.STORAGE)
        self.assertEqual(UID(height_map).name, "Height Map Segmentation Storage")
        jpeg_xl = UID("1.2.840.10008.1.2.4.112")
        self.assertEqual(jpeg_xl.name, "JPEG XL")
        self.assertTrue(jpeg_xl.is_compressed)
        self.assertFalse(jpeg_xl.is_implicit_VR)

    def test_instances(self) -> None:
        """The well-known SOP Instances are available under the names of PS3.6."""
        for name in dir(sop_class):
            if name.endswith("Instance"):
                self.assertEqual(getattr(sop_class, name).keyword, name)

    def test_unknown_name(self) -> None:
        """An unknown name raises an AttributeError that says so, and gives no SOP Class."""
        error = self.assertRaises(AttributeError, getattr, sop_class, "CTImageStorge")
        self.assertIn("CTImageStorge", str(error))
        self.assertRaises(AttributeError, getattr, sop_class, "SOPClassSOPClass")

    def test_copies(self) -> None:
        """Copying and pickling keep the type."""
        for duplicate in (copy.deepcopy(CTImageStorage), pickle.loads(pickle.dumps(CTImageStorage))):
            self.assertEqual(duplicate, CTImageStorage)
            self.assertIs(duplicate.service_class, ServiceClass.STORAGE)


class ServiceClassTests(SynchronousTestCase):
    """From a UID to its Service Class."""

    def test_counts(self) -> None:
        """Each Service Class has its SOP Classes; a later pydicom may know more."""
        counts = {service: len(sop_classes(service)) for service in ServiceClass}
        self.assertEqual(counts.pop(ServiceClass.UNKNOWN), 0)
        self.assertEqual(counts.keys(), COUNTS.keys())
        self.assertEqual({service: n for service, n in counts.items() if n < COUNTS[service]}, {})

    def test_all_current_are_served(self) -> None:
        """No current SOP Class is without a Service Class."""
        self.assertEqual(
            [
                entry.keyword
                for uid, entry in sop_class._entries.items()
                if entry.current and uid_to_service_class(uid) is ServiceClass.UNKNOWN
            ],
            [],
        )

    def test_storage_neighbours(self) -> None:
        """Not everything with "storage" in its name belongs to the Storage Service Class."""
        for name, service in (
            ("MediaStorageDirectoryStorage", ServiceClass.MEDIA_STORAGE),
            ("HangingProtocolStorage", ServiceClass.NON_PATIENT_OBJECT),
            ("XADefinedProcedureProtocolStorage", ServiceClass.NON_PATIENT_OBJECT),
            ("XAPerformedProcedureProtocolStorage", ServiceClass.STORAGE),
            ("ProtocolApprovalStorage", ServiceClass.NON_PATIENT_OBJECT),
            ("InventoryStorage", ServiceClass.NON_PATIENT_OBJECT),
            ("InventoryFind", ServiceClass.INVENTORY),
            ("InventoryCreation", ServiceClass.STORAGE_MANAGEMENT),
            ("RepositoryQuery", ServiceClass.QUERY_RETRIEVE),
            ("StorageCommitmentPushModel", ServiceClass.STORAGE_COMMITMENT),
        ):
            self.assertIs(getattr(sop_class, name).service_class, service, name)

    def test_retired(self) -> None:
        """Retired storage is still storage; of the other retired SOP Classes one model is supported."""
        self.assertIs(uid_to_service_class("1.2.840.10008.5.1.4.1.1.6"), ServiceClass.STORAGE)
        self.assertIs(sop_class.UnifiedProcedureStepPushTrial.service_class, ServiceClass.UNKNOWN)
        self.assertIs(sop_class.VOILUTBox.service_class, ServiceClass.UNKNOWN)
        self.assertIs(
            sop_class.PatientStudyOnlyQueryRetrieveInformationModelFind.service_class,
            ServiceClass.QUERY_RETRIEVE,
        )
        self.assertNotIn("1.2.840.10008.5.1.4.1.1.6", sop_classes(ServiceClass.STORAGE))

    def test_other_standards(self) -> None:
        """Images of DICOS and DICONDE can be stored, but are not in the list of all storage."""
        self.assertIs(sop_class.DICOSCTImageStorage.service_class, ServiceClass.STORAGE)
        self.assertNotIn(sop_class.DICOSCTImageStorage, sop_classes(ServiceClass.STORAGE))

    def test_service_class_uids(self) -> None:
        """A UID may also name a Service Class as a whole."""
        self.assertIs(uid_to_service_class("1.2.840.10008.4.2"), ServiceClass.STORAGE)
        self.assertIs(uid_to_service_class("1.2.840.10008.5.1.4.34.6"), ServiceClass.UNIFIED_PROCEDURE_STEP)

    def test_not_a_sop_class(self) -> None:
        """A transfer syntax, a private UID and nonsense belong to no Service Class."""
        for uid in ("1.2.840.10008.1.2", "1.2.3", "", "nonsense"):
            self.assertIs(uid_to_service_class(uid), ServiceClass.UNKNOWN)

    def test_common_storage(self) -> None:
        """There are 120 common SOP Classes, each once, in order, and all of the Storage Service Class."""
        common = common_storage_classes()
        self.assertEqual(len(common), 120)
        self.assertEqual(common, sorted(set(common)))
        self.assertEqual({uid.service_class for uid in common}, {ServiceClass.STORAGE})
        self.assertIn(CTImageStorage, common)


class UIDTests(SynchronousTestCase):
    """The forms of UIDs that are accepted."""

    def test_uid_to_sop_class(self) -> None:
        """A known UID gets its name, an unknown one has itself as its name, and a SOP Class stays itself."""
        self.assertEqual(uid_to_sop_class("1.2.840.10008.5.1.4.1.1.4").name, "MR Image Storage")
        self.assertEqual(uid_to_sop_class("1.2.3").name, "1.2.3")
        self.assertEqual(uid_to_sop_class("1.2.3").keyword, "")
        self.assertIs(uid_to_sop_class(Verification), Verification)
        self.assertRaises(TypeError, uid_to_sop_class, 12)

    @given(st.text())
    def test_any_text(self, text: str) -> None:
        """Any text from a peer can be named and looked up, without warnings."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            uid = SOPClass(text)
            self.assertIsInstance(uid.name, str)
            self.assertIn(uid.service_class, ServiceClass)

    def test_check(self) -> None:
        """Padding is removed, bytes are decoded, and an object without padding stays the same object."""
        self.assertEqual(check_uid(b"1.2.3\0", "it"), "1.2.3")
        self.assertEqual(check_uid(" 1.2.3 ", "it"), "1.2.3")
        self.assertIs(check_uid(Verification, "it"), Verification)
        self.assertEqual(check_uid("1.2.840.10008.", "it"), "1.2.840.10008.")

    def test_check_errors(self) -> None:
        """A wrong type and a wrong value raise different errors, and the message says what was wrong."""
        for value in (None, 12, 1.2, ["1.2"]):
            self.assertIn("the thing", str(self.assertRaises(TypeError, check_uid, value, "the thing")))
        for text in ("", " ", "abc", "1.2.x", "1 2", "1" * 65, "\u0661.2", "1.2\n", b"\xff"):
            self.assertIn("the thing", str(self.assertRaises(ValueError, check_uid, text, "the thing")))


class RegisterTests(SynchronousTestCase):
    """Private SOP Classes."""

    def setUp(self) -> None:
        self.patch(sop_class, "_entries", dict(sop_class._entries))
        self.patch(sop_class, "_uids", dict(sop_class._uids))

    def test_register(self) -> None:
        """A registered UID has a name, a Service Class and an attribute, but is not in the lists."""
        uid = register_uid("1.2.3.4", "AcmeStorage", ServiceClass.STORAGE, "Acme Storage")
        self.assertEqual(uid, "1.2.3.4")
        self.assertEqual((uid.name, uid.keyword), ("Acme Storage", "AcmeStorage"))
        self.assertIs(uid_to_service_class("1.2.3.4"), ServiceClass.STORAGE)
        self.assertEqual(sop_class.AcmeStorage, "1.2.3.4")
        self.assertIn("AcmeStorage", dir(sop_class))
        self.assertNotIn(uid, sop_classes(ServiceClass.STORAGE))

    def test_by_word_and_again(self) -> None:
        """The Service Class may be given by its name, and registering a UID again in the same way is allowed."""
        first = register_uid(UID("1.2.3.4"), "AcmeFind", "Query/Retrieve")
        again = register_uid(b"1.2.3.4", "AcmeFind", ServiceClass.QUERY_RETRIEVE)
        self.assertEqual(first, again)
        self.assertEqual(again.name, "AcmeFind")
        self.assertIs(again.service_class, ServiceClass.QUERY_RETRIEVE)

    def test_errors(self) -> None:
        """UID and keyword must be valid, and must not have another meaning already."""
        register_uid("1.2.3.4", "AcmeStorage", ServiceClass.STORAGE)
        for uid, keyword, service in (
            ("1.2.3.4", "OtherStorage", "Storage"),
            ("1.2.3.4", "AcmeStorage", "Verification"),
            ("1.2.840.10008.1.1", "AcmeVerification", "Verification"),
            ("1.2.3.5", "AcmeStorage", "Storage"),
            ("1.2.3.5", "Verification", "Storage"),
            ("1.2.3.5", "VerificationSOPClass", "Storage"),
            ("1.2.3.5", "ServiceClass", "Storage"),
            ("1.2.3.5", "not a name", "Storage"),
            ("1.2.3.5", "_entries", "Storage"),
            ("1.2.3.5", "AcmeOther", "No Such Class"),
            ("acme", "AcmeOther", "Storage"),
        ):
            self.assertRaises(ValueError, register_uid, uid, keyword, service)
        self.assertRaises(TypeError, register_uid, 12, "AcmeOther", "Storage")
        self.assertRaises(TypeError, register_uid, "1.2.3.5", 12, "Storage")
        self.assertIs(uid_to_service_class("1.2.3.5"), ServiceClass.UNKNOWN)


class ImportTests(SynchronousTestCase):
    """The imports of the module."""

    def test_without_twisted(self) -> None:
        """Neither SOP Classes nor contexts need Twisted."""
        # The package's own __init__ may need Twisted, so an empty one replaces it.
        code = """if True:
            import sys, types
            sys.modules["twisted"] = None
            package = sys.modules["dicomtwist"] = types.ModuleType("dicomtwist")
            package.__path__ = [sys.argv[1]]
            import dicomtwist.sop_class, dicomtwist.presentation
            """
        folder = Path(sop_class.__file__).parent
        subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
