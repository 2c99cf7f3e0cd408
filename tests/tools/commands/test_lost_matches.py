"""
Matches of ``dicomtwist find`` that cannot be decoded or shown: each is lost alone, and said so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydicom import Dataset
from pydicom.uid import ImplicitVRLittleEndian

from dicomtwist import AE, evt
from dicomtwist.datasets import encode_dataset
from dicomtwist.sop_class import StudyRootQueryRetrieveInformationModelFind as STUDY_FIND
from tests.tools.common import ToolTestCase


class LostMatches(ToolTestCase):
    """A peer whose second and third match are broken."""

    async def test_find(self) -> None:
        """The other matches are printed, the exit status is 1, and the error says what is missing."""
        made = Dataset()
        made.StudyInstanceUID = "1.2.3"
        good = encode_dataset(made, ImplicitVRLittleEndian)
        not_a_number = b"\x20\0\x06\x12\4\0\0\0abcd"  # Number of Study Related Series

        def find(event: Any) -> Iterator[Any]:
            for identifier in (good, b"\x08\0\5\0\xff\0\0\0", not_a_number, good + b"\0"):
                yield 0xFF00, identifier

        ae = AE("SCP")
        ae.add_supported_context(STUDY_FIND, ImplicitVRLittleEndian)
        self.addCleanup(ae.shutdown)
        server = await ae.start_server(("127.0.0.1", 0), evt_handlers=[(evt.EVT_C_FIND, find)])
        keys = ("-k", "StudyInstanceUID", "-k", "NumberOfStudyRelatedSeries")
        document = await self.json("find", f"127.0.0.1:{server.port}", *keys, code=1)
        self.assertEqual(len([match for match in document["matches"] if "1.2.3" in str(match)]), 2, document)
        self.assertGreaterEqual(document["lost"], 1)
        self.assertEqual(document["count"] + document["lost"], 4)
        self.assertIn("could not be decoded", document["error"].replace("cannot be shown", "could not be decoded"))
