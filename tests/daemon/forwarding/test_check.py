"""The rules of forwarding in ``twist dicom --check``."""

from __future__ import annotations

from dicomtwist.daemon.forwarding.files import make_key
from tests.daemon.test_check import CheckTestCase

PEERS = """
[peers]
RESEARCH = "127.0.0.1:11113"
SPARE = "127.0.0.1:11114"
CLOUD = "http://127.0.0.1:8043/dicom-web"
"""


class Forwarding(CheckTestCase):
    def test_rules_in_words(self) -> None:
        (self.folder / "ids.csv").write_text("P1,T1\nP2,T2\n")
        make_key(self.folder / "key")
        rules = f"""
[[forward]]
name = "all"
to = [["RESEARCH", "SPARE"], "CLOUD"]
[[forward]]
name = "trial"
calling = "CT*"
from = "10.1.0.0/16"
modality = ["CT", "MR"]
where.StationName = "CT1*"
to = "CLOUD"
hours = "22:00-06:00"
study-quiet = "60s"
confirm = "query"
keep = false
set.InstitutionName = "X"
map.PatientID = "{self.folder}/ids.csv"
deidentify = ["retain-uids"]
"""
        text = f'forward-key = "{self.folder}/key"\n{PEERS}{rules}'
        code, printed = self.run_options("--check", text=text)
        self.assertEqual(code, 0, printed)
        printed = " ".join(printed.split())
        for words in (
            "peers 3: RESEARCH, SPARE, CLOUD",
            "Forward 1 'all': anybody: to RESEARCH, else SPARE and to CLOUD",
            "Forward 2 'trial': CT* at 10.1.0.0/16, Modality CT or MR, StationName CT1*: to CLOUD; set InstitutionName; "
            "map PatientID by a table of 2 rows; deidentify with retain-uids; at 22:00-06:00; "
            "when nothing of the study has arrived for 60 s; confirmed by query; deleted here afterwards",
            "forward 2 'trial': deidentify changes the header only",
        ):
            self.assertIn(words, printed)

    def test_mistakes(self) -> None:
        """A mistake is one line with the file, the rule and the key."""
        for rules, words in (
            ('[[forward]]\nto = "NOWHERE"', "forward 1: to: 'NOWHERE' is not in [peers]"),
            ('[forward]\nto = "CLOUD"', "forward: write each rule as a table, [[forward]]"),
            ('[[forward]]\nto = "CLOUD"\ndeidentify = true', "forward 1: deidentify: it needs a key"),
            ('[[forward]]\nto = "CLOUD"\nmap.PatientID = "/nowhere.csv"', "map.PatientID: cannot read /nowhere.csv"),
            (
                '[[forward]]\nto = "CLOUD"\nmodalty = "CT"',
                "forward 1: modalty: it is not a key: did you mean modality?",
            ),
        ):
            code, printed = self.run_options("--check", text=PEERS + rules)
            self.assertEqual(code, 64)
            self.assertIn(f"{self.path}: ", printed)
            self.assertIn(words, printed)
        code, printed = self.run_options("--check", "--forward-key", "/nowhere", text=PEERS)
        self.assertEqual(code, 64)
        self.assertIn("--forward-key: cannot read /nowhere", printed)

    def test_addresses_of_dicomweb(self) -> None:
        for address, words in (
            ("http://", "the URL of a service has the form"),
            ("http://host:0/", "the URL of a service has the form"),
            ("https://user:secret@host/dicom-web", "a URL with a user or a password"),
            ("https://host/x?y=1", "no query"),
            ("https://hö.example/", "printable ASCII"),
        ):
            code, printed = self.run_options("--check", text=f'[peers]\nWEB = "{address}"')
            self.assertEqual(code, 64)
            self.assertIn(words, printed)
            self.assertNotIn("secret", printed)

    def test_warnings(self) -> None:
        key = self.folder / "key"
        make_key(key)
        key.chmod(0o644)
        rules = '[[forward]]\nname = "r"\ncalling = "MR1"\nto = "DICOMTWIST"'
        text = f'allow-calling = "CT1"\nforward-key = "{key}"\n[peers]\nDICOMTWIST = "127.0.0.1:11113"\n{rules}'
        code, printed = self.run_options("--check", text=text)
        self.assertEqual(code, 0, printed)
        printed = " ".join(printed.split())
        self.assertIn("can be read by all users of this machine", printed)
        self.assertIn("forward 1 'r' never matches: allow-calling", printed)
        self.assertIn("sends to DICOMTWIST, which is the AE title of this server", printed)
