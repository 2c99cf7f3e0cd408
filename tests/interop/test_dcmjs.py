"""
dcmjs-dimse, the DICOM of JavaScript, as a peer of ``twist dicom``: what it stores and retrieves is what it had.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from twisted.trial.unittest import SkipTest, TestCase

from tests import peers
from tests.publishing import publish

#: Where ``make peers`` installs it.
MODULES = Path(__file__).parents[2] / ".venv" / "node" / "node_modules"

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
#: Multi-frame Single Bit Secondary Capture Image Storage. It proposes a role for few classes, segmentations not among them.
SINGLE_BIT = "1.2.840.10008.5.1.4.1.1.7.1"

STORE = """
const { Client, requests, constants, log } = require('dcmjs-dimse');
const { data } = require('dcmjs').default || require('dcmjs');
log.level = 'error';
const client = new Client();
let failed = 0, answered = 0;
for (const path of process.argv.slice(4)) {
  const request = new requests.CStoreRequest(path);
  request.on('response', (response) => {
    answered += 1;
    if (response.getStatus() !== constants.Status.Success) failed += 1;
  });
  client.addRequest(request);
}
client.on('networkError', (error) => { console.error(error); process.exit(2); });
client.on('closed', () => {
  console.log(`answered ${answered} failed ${failed}`);
  process.exit(failed || !answered ? 1 : 0);
});
// It writes the private elements only that it has names for, with the VR of the data set.
const names = { ...data.DicomMetaDictionary.nameMap };
for (const [tag, vr] of [['00110010', 'LO'], ['00111001', 'US'], ['00111002', 'FD'], ['00111003', 'LO']]) {
  names[tag] = { tag: `(${tag.slice(0, 4)},${tag.slice(4)})`, vr, name: tag, vm: '1' };
}
client.send('127.0.0.1', Number(process.argv[2]), 'DCMJS', process.argv[3], { datasetNameMap: names });
"""

GET = """
const { Client, requests, responses, constants, log } = require('dcmjs-dimse');
log.level = 'error';
const client = new Client();
const [, , port, study] = process.argv;
let got = 0;
const request = requests.CGetRequest.createStudyGetRequest(study);
client.on('cStoreRequest', (storing, callback) => {
  got += 1;
  const elements = storing.getDataset().getElements();
  const bits = Array.from(new Uint8Array([].concat(elements.PixelData)[0]));
  const words = ['00111001', '00111002', '00111003'].map((tag) => String([].concat(elements[tag])[0]));
  console.log(JSON.stringify([bits, words]));
  const response = responses.CStoreResponse.fromRequest(storing);
  response.setStatus(constants.Status.Success);
  callback(response);
});
client.addRequest(request);
client.on('networkError', (error) => { console.error(error); process.exit(2); });
client.on('closed', () => { console.log(`got ${got}`); process.exit(got ? 0 : 1); });
client.send('127.0.0.1', Number(port), 'DCMJS', 'DICOMTWIST');
"""


def one_bit(sop_class: str, uid: str) -> Dataset:
    """Return an image of 1 bit a pixel, with private elements whose VR only explicit VR tells."""
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = sop_class, uid
    made.StudyInstanceUID, made.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    made.PatientID, made.PatientName, made.Modality = "P", "Doe^Jane", "SEG"
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.Rows = made.Columns = 16
    made.NumberOfFrames = 1
    made.BitsAllocated = made.BitsStored = 1
    made.HighBit = made.PixelRepresentation = 0
    made.SegmentationType = "BINARY"
    block = made.private_block(0x0011, "dicomtwist", create=True)
    block.add_new(0x01, "US", 513)
    block.add_new(0x02, "FD", 1.25)
    block.add_new(0x03, "LO", "words")
    made.add_new(0x7FE00010, "OB", bytes(range(32)))
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return made


class DcmjsTests(TestCase):
    """
    Both directions: it proposes Implicit VR before Explicit VR in one presentation context.
    """

    timeout = 120

    def setUp(self) -> None:
        peers.require("node")
        if not (MODULES / "dcmjs-dimse").is_dir():
            missing = "not installed: dcmjs-dimse (make peers, or npm install --prefix .venv/node dcmjs-dimse)"
            if os.environ.get("CI", "").lower() in {"1", "true"}:
                raise peers.PeerError(missing)
            raise SkipTest(missing)

    async def javascript(self, script: str, *arguments: object) -> peers.Result:
        """Run *script* to its end."""
        path = Path(self.mktemp()).absolute()
        path.write_text(script)
        shown = [str(argument) for argument in arguments]
        return await peers.run("env", f"NODE_PATH={MODULES}", peers.tool("node"), str(path), *shown)

    async def test_round_trip(self) -> None:
        """A 1-bit segmentation keeps its bits, private elements keep their VRs and values, when stored and when retrieved."""
        folder = Path(self.mktemp())
        folder.mkdir()
        files = []
        for number, sop_class in enumerate((SEGMENTATION, SINGLE_BIT, SINGLE_BIT)):
            path = folder.absolute() / f"{number}.dcm"
            one_bit(sop_class, f"1.2.3.4.{number + 1}").save_as(path, enforce_file_format=True)
            files.append(path)
        port, storage = peers.free_port(), Path(self.mktemp())
        await peers.start(
            self,
            sys.executable,
            *("-m", "twisted", "dicom", "--storage", str(storage), "--port", f"tcp:{port}:interface=127.0.0.1"),
            ready=port,
        )
        result = await self.javascript(STORE, port, "DICOMTWIST", *files)
        self.assertEqual(result.code, 0, result.text)
        await publish(port)
        stored = sorted(storage.glob("*/*/*.dcm"))
        self.assertEqual(len(stored), 3)
        for path in stored:
            self.check(path)
        result = await self.javascript(GET, port, "1.2.3")
        got = [json.loads(line) for line in result.text.splitlines() if line.startswith("[[")]
        self.assertEqual(got, [[list(range(32)), ["513", "1.25", "words"]]] * 2, result.text)

    def check(self, path: Path) -> None:
        """Check that the instance in *path* is as it was made."""
        found = dcmread(path)
        made = one_bit(str(found.SOPClassUID), str(found.SOPInstanceUID))
        self.assertEqual(found.PixelData, made.PixelData)
        for tag in (0x00111001, 0x00111002, 0x00111003):
            self.assertEqual((found[tag].VR, found[tag].value), (made[tag].VR, made[tag].value))
