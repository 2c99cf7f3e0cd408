"""
Users of DICOMweb at ``twist dicom`` over TLS, in two processes: tokens, passcodes, certificates; all faces of the client.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from dicomweb_client import DICOMwebClient as OtherClient
from dicomweb_client.session_utils import create_session, create_session_from_user_pass
from pydicom import dcmread
from twisted.internet.threads import deferToThread

from dicomtwist.dicomweb import AccessDenied, DICOMwebClient, NoConnection
from dicomtwist.endpoints import client_tls_options
from tests import peers
from tests.certificates import Authority
from tests.interop.twist import TwistTestCase
from tests.peers import dicom_files

POLICY = """
http = [{port!r}]

[access]
users = {users!r}

[[access.rule]]
user = "viewer"
allow = ["find", "get"]

[[access.rule]]
user = "doctor"
identity = "passcode"
allow = ["find"]

[[access.rule]]
certificate = "CN=modality"
allow = ["store"]
"""

SYNC = """
import json, sys
import dicomtwist.sync
from dicomtwist.dicomweb import AccessDenied, NoConnection
from dicomtwist.endpoints import client_tls_options

url, roots, token, modality, file, folder = sys.argv[1:]
tls = client_tls_options("localhost", roots)
with dicomtwist.sync.DICOMwebClient(url, tls=tls, token=lambda: token) as client:
    (study,) = client.search_for_studies({"PatientID": "1CT1"})
    uid = study.StudyInstanceUID
    (image,) = [part.dataset() for part in client.retrieve_study(uid)]
    (content,) = [b"".join(part) for part in client.retrieve_study(uid)]
    (metadata,) = client.retrieve_metadata(uid)
    (frame,) = [part.read() for part in client.retrieve_frames(uid, image.SeriesInstanceUID, image.SOPInstanceUID)]
    assert image.PixelData == frame and content[128:132] == b"DICM" and metadata.Rows == image.Rows
    for part in client.retrieve_study(uid):
        break
    totals = client.retrieve_into(uid, folder, durability="none")
    try:
        client.store_instances(file)
    except AccessDenied as error:
        refused = error.status
try:
    list(dicomtwist.sync.DICOMwebClient(url, token=token).search_for_studies())
except NoConnection as error:
    untrusted = str(error)
sender = dicomtwist.sync.DICOMwebClient(url, tls=client_tls_options("localhost", roots, modality))
results = []
stored = sender.store_instances([file, "missing"], on_result=results.append)
print(json.dumps([totals.stored, refused, untrusted, stored.stored, stored.failed, len(results)]))
"""

ASYNCIO = """
import asyncio, json, sys
import dicomtwist.asyncio
from dicomtwist.dicomweb import AccessDenied, NoConnection
from dicomtwist.endpoints import client_tls_options

url, roots, token, modality, file, folder = sys.argv[1:]
tls = client_tls_options("localhost", roots)

async def make_token():
    await asyncio.sleep(0)
    return token

async def files():
    for name in (file, "missing"):
        await asyncio.sleep(0)
        yield name

client = dicomtwist.asyncio.DICOMwebClient(url, tls=tls, token=make_token)

async def main():
    async with client:
        (study,) = [one async for one in client.search_for_studies({"PatientID": "1CT1"})]
        uid = study.StudyInstanceUID
        (image,) = [await part.dataset() async for part in client.retrieve_study(uid)]
        (content,) = [b"".join([piece async for piece in part]) async for part in client.retrieve_study(uid)]
        (metadata,) = [one async for one in client.retrieve_metadata(uid)]
        parts = client.retrieve_frames(uid, image.SeriesInstanceUID, image.SOPInstanceUID)
        (frame,) = [await part.read() async for part in parts]
        assert image.PixelData == frame and content[128:132] == b"DICM" and metadata.Rows == image.Rows
        async for part in client.retrieve_study(uid):
            break
        try:
            async with asyncio.timeout(0):
                await client.retrieve_rendered(uid)
        except TimeoutError:
            pass
        totals = await client.retrieve_into(uid, folder, durability="none")
        try:
            await client.store_instances(file)
        except AccessDenied as error:
            refused = error.status
    try:
        [one async for one in dicomtwist.asyncio.DICOMwebClient(url, token=token).search_for_studies()]
    except NoConnection as error:
        untrusted = str(error)
    sender = dicomtwist.asyncio.DICOMwebClient(url, tls=client_tls_options("localhost", roots, modality))
    results = []
    stored = await sender.store_instances(files(), on_result=results.append)
    return [totals.stored, refused, untrusted, stored.stored, stored.failed, len(results)]

async def again():
    return [one async for one in client.search_for_studies()]

found = asyncio.run(main())
assert asyncio.run(again())  # on another event loop
print(json.dumps(found))
"""


class Users(TwistTestCase):
    async def start(self) -> None:
        """Start the server, with a CT image, and make the users."""
        self.files = {os.path.basename(file.path): file for file in dicom_files()}
        folder = Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        self.folder = folder
        authority = Authority(str(folder), "ca")
        self.roots = authority.path
        key = authority.issue("server", "localhost")
        self.modality = authority.issue("modality", "modality.example", common_name="modality")
        users = folder / "users"
        self.token_file = folder / "token"
        tokens = await self.passwd("--users", users, "--token", "viewer")
        self.token = tokens.split()[0]
        self.token_file.write_text(self.token)
        self.token_file.chmod(0o600)
        self.passcode_file = folder / "passcode"
        self.passcode_file.write_text("open sesame")
        self.passcode_file.chmod(0o600)
        await self.passwd("--users", users, "doctor", stdin="open sesame\n")
        self.http = peers.free_port()
        port = (
            f"dicomtls:{self.http}:privateKey={key}:certKey={key}:trustRoots={self.roots}"
            ":clientCertificate=optional:interface=127.0.0.1"
        )
        config = folder / "twist.toml"
        config.write_text(POLICY.format(port=port, users=str(users)))
        self.base = f"https://localhost:{self.http}/dicom-web"
        await self.twist("--config", config, "--workers", "2")

    async def passwd(self, *arguments: object, stdin: str = "") -> str:
        """Run ``dicomtwist passwd``, and return what it prints."""
        code = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[2:], input=sys.argv[1], text=True).returncode)"
        command = (sys.executable, "-m", "dicomtwist.tools", "passwd", *arguments)
        result = await peers.run(sys.executable, "-c", code, stdin, *command)
        self.assertEqual(result.code, 0, result.text)
        return bytes(result.stdout).decode()

    async def command(self, *args: object) -> Any:
        """Run ``dicomtwist`` with ``--json``, and return its document."""
        name, *rest = args
        result = await peers.run(sys.executable, "-m", "dicomtwist.tools", name, "--json", *rest, timeout=120)
        return json.loads(result.stdout)

    def client(self, *certificate: str, **arguments: Any) -> DICOMwebClient:
        """Return a client that trusts the server."""
        tls = client_tls_options("localhost", self.roots, *certificate)
        client = DICOMwebClient(self.base, tls=tls, **arguments)
        self.addCleanup(client.close)
        return client

    async def test_all(self) -> None:
        """Each user may do what the rules say, with each client; one server for all, since it takes seconds to start."""
        await self.start()
        await self.check_library()
        await self.check_other_clients()
        await self.check_command()
        ct, mr = self.files["CT_small.dcm"], self.files["MR_small.dcm"]
        for number, script in enumerate((SYNC, ASYNCIO)):
            folder = self.folder / f"studies{number}"
            result = await peers.run(
                sys.executable,
                *("-W", "error::RuntimeWarning", "-c", script, self.base, self.roots, self.token, self.modality),
                *(mr.path, folder),
            )
            self.assertEqual(result.code, 0, result.text)
            stored, refused, untrusted, sent, failed, results = json.loads(result.stdout)
            self.assertEqual((stored, refused, sent, failed, results), (1, 403, 1, 1, 2))
            self.assertIn("certificate", untrusted)
            (file,) = folder.rglob("*.dcm")
            self.assertEqual(dcmread(file).SOPInstanceUID, ct.sop_instance)

    async def check_library(self) -> None:
        ct = self.files["CT_small.dcm"]
        modality = self.client(self.modality)
        self.assertEqual((await modality.store_instances(ct.path)).stored, 1)
        with self.assertRaises(AccessDenied) as caught:
            [one async for one in modality.search_for_studies()]
        self.assertEqual(caught.exception.status, 401)
        doctor = self.client(user=("doctor", "open sesame"))
        self.assertEqual(len([one async for one in doctor.search_for_studies()]), 1)
        with self.assertRaises(AccessDenied) as caught:
            [part async for part in doctor.retrieve_study(ct.study)]
        self.assertEqual(caught.exception.status, 403)
        viewer = self.client(token=self.token)
        for _ in range(8):  # some of the connections lead to the other process
            (content,) = [await part.read() async for part in self.client(token=self.token).retrieve_study(ct.study)]
            self.assertEqual(content[-1000:], Path(ct.path).read_bytes()[-1000:])
        with self.assertRaises(AccessDenied) as caught:
            await viewer.delete_study(ct.study)
        self.assertEqual(caught.exception.status, 403)
        for arguments in (
            {},
            {"token": "dicomtwist_wrong"},
            {"user": ("doctor", "wrong")},
            {"user": ("viewer", self.token)},
        ):
            with self.assertRaises(AccessDenied) as caught:
                [one async for one in self.client(**arguments).search_for_studies()]
            self.assertEqual(caught.exception.status, 401, arguments)
            self.assertNotIn(self.token, str(caught.exception))
        stranger = Authority(str(self.folder), "other").issue("stranger", "x", common_name="modality")
        for client in (self.client(stranger), DICOMwebClient(self.base, token=self.token, retries=0)):
            with self.assertRaises(NoConnection) as failed:
                [one async for one in client.search_for_studies()]
            self.assertIn("TLS", str(failed.exception))

    async def check_other_clients(self) -> None:
        """dicomweb-client and curl with the same users."""
        ct = self.files["CT_small.dcm"]

        def session(made: Any) -> Any:
            made.verify, made.trust_env = self.roots, False  # REQUESTS_CA_BUNDLE would be preferred
            return made

        def use() -> tuple[Any, ...]:
            by_token = {"Authorization": f"Bearer {self.token}"}
            viewer = OtherClient(self.base, session=session(create_session()), headers=by_token)
            doctor = OtherClient(self.base, session=session(create_session_from_user_pass("doctor", "open sesame")))
            modality = OtherClient(self.base, session=session(create_session()))
            modality._session.cert = self.modality
            modality.store_instances([dcmread(ct.path)])
            uids = (ct.study, ct.series, ct.sop_instance)
            return (
                len(viewer.search_for_studies()),
                len(doctor.search_for_instances()),
                [one.SOPInstanceUID for one in viewer.retrieve_study(ct.study)],
                viewer.retrieve_instance(*uids).PixelData == dcmread(ct.path).PixelData,
                viewer.retrieve_instance_frames(*uids, [1])[0] == dcmread(ct.path).PixelData,
                len(viewer.retrieve_series_metadata(ct.study, ct.series)),
                viewer.retrieve_instance_rendered(*uids, media_types=("image/png",))[:4],
                viewer.retrieve_bulkdata(
                    f"{self.base}/studies/{ct.study}/series/{ct.series}/instances/{ct.sop_instance}/bulkdata/7FE00010"
                )[0]
                == dcmread(ct.path).PixelData,
            )

        self.assertEqual(
            await deferToThread(use), (1, 1, [ct.sop_instance], True, True, 1, b"\x89PNG", True)
        )  # fmt: skip

    async def check_command(self) -> None:
        ct = self.files["CT_small.dcm"]
        trust = ("--tls-roots", self.roots)
        found = await self.command("find", *trust, "--jwt-file", self.token_file, self.base)
        self.assertEqual((found["count"], found["exit_status"]), (1, 0), found)
        passcode = ("--user", "doctor", "--password-file", self.passcode_file)
        found = await self.command("find", *trust, *passcode, self.base)
        self.assertEqual(found["count"], 1, found)
        key = ("--tls-key", self.modality)
        sent = await self.command("store", *trust, *key, self.base, ct.path)
        self.assertEqual((sent["stored"], sent["exit_status"]), (1, 0), sent)
        refused = await self.command("store", *trust, *passcode, self.base, ct.path)
        self.assertEqual(refused["stored"], 0, refused)
        got = await self.command(
            "get",
            *trust,
            "--jwt-file",
            self.token_file,
            self.base,
            self.folder / "got",
            "-k",
            f"StudyInstanceUID={ct.study}",
        )
        self.assertEqual((got["stored"], got["exit_status"]), (1, 0), got)
        nobody = await self.command("find", *trust, self.base)
        self.assertNotEqual(nobody["exit_status"], 0, nobody)
        self.assertIn("401", json.dumps(nobody))
        untrusted = await self.command("find", "--jwt-file", self.token_file, self.base)
        self.assertEqual(untrusted["exit_status"], 3, untrusted)
        self.assertIn("certificate", json.dumps(untrusted))
