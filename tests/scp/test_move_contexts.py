"""The presentation contexts that are proposed for a C-MOVE, if images can be converted."""

from __future__ import annotations

import unittest

from pydicom.uid import JPEG2000, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from dicomtwist.pixels.pool import Pixels
from dicomtwist.scp.move_destination import contexts_for
from dicomtwist.ul.items import MAX_PRESENTATION_CONTEXTS

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
VIDEO = "1.2.840.10008.1.2.4.102"
BOTH = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]


def proposed(*instances: tuple[str, str], converts: bool = True) -> list[tuple[str, list[str]]]:
    transcoder = Pixels(None) if converts else None
    return [
        (str(context.abstract_syntax), [*map(str, context.transfer_syntax)])
        for context in contexts_for(instances, transcoder)
    ]


class Contexts(unittest.TestCase):
    def test_without_a_transcoder(self) -> None:
        self.assertEqual(proposed((CT, JPEG2000), converts=False), [(CT, [JPEG2000])])

    def test_one_compressed_transfer_syntax(self) -> None:
        """It comes last, since GDCM reads all data sets in the transfer syntax of the last context."""
        self.assertEqual(proposed((CT, JPEG2000)), [(CT, BOTH), (CT, [JPEG2000])])

    def test_several(self) -> None:
        found = proposed((CT, JPEG2000), (CT, RLELossless), (MR, RLELossless))
        self.assertEqual(found[:3], [(CT, [JPEG2000]), (CT, [RLELossless]), (MR, [RLELossless])])
        self.assertEqual(found[3:], [(CT, BOTH), (MR, BOTH)])

    def test_uncompressed_instances_of_the_class(self) -> None:
        """Their context serves the compressed ones as well."""
        found = proposed((CT, JPEG2000), (CT, ExplicitVRLittleEndian))
        self.assertEqual(sum(len(syntaxes) > 1 for _, syntaxes in found), 1)

    def test_video_is_not_converted(self) -> None:
        self.assertEqual(proposed((CT, VIDEO)), [(CT, [VIDEO])])

    def test_bound(self) -> None:
        """The contexts with the transfer syntaxes of the files are kept."""
        found = proposed(*((f"1.2.{number}", JPEG2000) for number in range(MAX_PRESENTATION_CONTEXTS - 3)))
        self.assertEqual(len(found), MAX_PRESENTATION_CONTEXTS)
        self.assertEqual(sum(syntaxes == [JPEG2000] for _, syntaxes in found), MAX_PRESENTATION_CONTEXTS - 3)
