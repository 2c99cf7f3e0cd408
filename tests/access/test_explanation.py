"""Explanations of access rules, and whether they say what the enforcement does."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.access.enforcement import Policy
from dicomtwist.access.explanation import Explanation, explain, parse_case
from dicomtwist.access.rules import Identity, Operation, parse_rules
from dicomtwist.access.users import Users, hash_passcode
from tests.access.test_rules import certificate

RULES = parse_rules(
    [
        {"name": "this machine", "from": ["loopback", "unix"], "allow": "all"},
        {"name": "modalities", "calling": ["CT*", "MR*"], "from": "10.1.0.0/16", "allow": ["echo", "store"]},
        {"name": "alice", "user": "alice", "allow": "find"},
        {"certificate": "CN=gateway,O=Hospital", "allow": ["store", "replace"]},
        {"identity": "kerberos", "allow": "get"},
        {"calling": "REPLACER", "allow": "replace"},
    ],
    "access.rule",
)


class Cases(SynchronousTestCase):
    """The description of a case."""

    def test_each_key(self) -> None:
        case = parse_case(
            "Calling=CT1, from=::1,operation=store,find,called=X,user=al,ice,identity=passcode,proxied=yes,"
            "certificate=CN=ct1,O=Hospital\\, North",
            "ARCHIVE",
        )
        requestor = case.requestor
        self.assertEqual(case.operations, (Operation.STORE, Operation.FIND))
        self.assertEqual((requestor.called, requestor.calling, requestor.address), ("X", "CT1", "::1"))
        self.assertEqual((requestor.user, requestor.identity, requestor.proxied), ("al,ice", Identity.PASSCODE, True))
        assert requestor.certificate is not None
        self.assertEqual(str(requestor.certificate), "CN=ct1,O=Hospital\\\\, North")

    def test_defaults(self) -> None:
        case = parse_case("calling=CT1,from=loopback", "ARCHIVE")
        self.assertEqual(case.requestor.called, "ARCHIVE")
        self.assertEqual(case.requestor.address, "127.0.0.1")
        self.assertEqual(case.operations, ())
        self.assertEqual(parse_case("calling=A,from=[::1],operation=C-STORE+c-echo", "B").operations[0], "store")
        self.assertEqual(parse_case("calling=A,from=unix,operation=all", "B").operations, tuple(Operation))

    def test_a_certificate_in_a_file(self) -> None:
        shown = certificate("gateway", organization_name="Hospital")
        path = Path(self.mktemp())
        path.write_bytes(shown.public_bytes(Encoding.PEM))
        case = parse_case(f"calling=A,from=10.9.0.1,operation=store,certificate={path}", "ARCHIVE")
        self.assertTrue(explain(case, Policy(RULES)).allowed)
        path.write_bytes(b"x")
        error = self.assertRaises(ValueError, parse_case, f"calling=A,from=10.9.0.1,certificate={path}", "ARCHIVE")
        self.assertIn("is not a certificate in PEM form", str(error))

    def test_mistakes(self) -> None:
        for text, words in (
            ("", "has no key"),
            ("CT1", "'CT1' has no key: write calling=CT1,from="),
            ("callng=CT1,from=10.1.2.3", "callng is not a key: did you mean calling?"),
            ("calling=CT1,frm=10.1.2.3", "frm is not a key: did you mean from?"),
            ("calling=CT1,operation=store", "from is missing: write from=10.1.2.3"),
            ("from=10.1.2.3", "calling is missing"),
            ("calling=,from=10.1.2.3", "calling is missing"),
            ("calling=A,calling=B,from=10.1.2.3", "calling is there twice"),
            ("calling=CT1,from=pacs.example.org", "is not an address"),
            ("calling=CT1,from=10.1.0.0/16", "is not an address"),
            ("calling=CT1,from=10.1.2.3:104", "is not an address"),
            ("calling=12345678901234567,from=::1", "17 characters"),
            ("calling=A,from=::1,operation=xtore", "'xtore' is not known: did you mean store?"),
            ("calling=A,from=::1,identity=passcod", "did you mean passcode?"),
            ("calling=A,from=::1,proxied=maybe", "proxied is yes or no"),
            ("calling=A,from=::1,certificate=gateway", "describes no certificate"),
        ):
            error = self.assertRaises(ValueError, parse_case, text, "ARCHIVE")
            self.assertIn(words, str(error), text)


class Explanations(SynchronousTestCase):
    """The rule that allows a case, or the reason why none does."""

    def setUp(self) -> None:
        path = Path(self.mktemp())
        path.write_text(f"{hash_passcode('alice', b'secret', n=16)}\n")
        self.users = Users(path)

    def explained(self, text: str, policy: Policy | None = None, **server: object) -> Explanation:
        return explain(parse_case(text, "ARCHIVE"), policy or Policy(RULES, self.users), **server)  # type: ignore[arg-type]

    def test_each_outcome(self) -> None:
        for text, allowed, words in (
            ("calling=CT1,from=10.1.2.3,operation=store", True, "store: allowed; access.rule 2 'modalities'"),
            ("calling=CT1,from=127.0.0.1,operation=store", True, "store: allowed; access.rule 1 'this machine'"),
            ("calling=CT1,from=127.0.0.1,proxied=yes,operation=store", False, "127.0.0.1 behind a proxy"),
            (
                "calling=CT1,from=10.1.2.3,operation=move",
                False,
                "move: refused with 0x0124; the nearest is access.rule 1",
            ),
            ("calling=CT1,from=10.1.2.3,operation=store,move", False, "store: allowed"),
            ("calling=CT1,from=10.1.2.3", True, "move: refused with 0x0124"),
            ("calling=ct1,from=10.1.2.3", False, "rejected with (1, 1, 3)"),
            ("calling=A,from=10.9.0.1,user=alice,operation=find", True, "if the passcode is right"),
            ("calling=A,from=10.9.0.1,user=bob", False, "rejected with (2, 2, 1)"),
            ("calling=A,from=10.9.0.1,user=bob", False, "the file of users has no 'bob'"),
            ("calling=A,from=10.9.0.1,identity=kerberos", False, "access.accept-identity does not name kerberos"),
            ("calling=A,from=10.9.0.1,user=alice,identity=username", False, "does not name username"),
            ("calling=A,from=10.9.0.1,certificate=CN=gateway,O=Hospital,operation=store", True, "access.rule 4"),
            (
                "calling=A,from=10.9.0.1,certificate=CN=gateway,operation=store",
                False,
                "the certificate is CN=gateway, not",
            ),
            ("calling=A,from=10.9.0.1,certificate=O=Hospital,CN=gateway,operation=replace", True, "access.rule 4"),
            # An instance is replaced by a C-STORE, which store has to allow.
            ("calling=REPLACER,from=10.9.0.1,operation=replace", False, "replace: refused with 0x0124"),
        ):
            found = self.explained(text)
            self.assertEqual(found.allowed, allowed, text)
            self.assertIn(words, "\n".join(found.lines), text)

    def test_identities(self) -> None:
        policy = Policy(RULES, None, frozenset({Identity.USERNAME, Identity.KERBEROS}))
        self.assertTrue(self.explained("calling=A,from=::2,user=alice,operation=find", policy).allowed)
        self.assertTrue(self.explained("calling=A,from=::2,user=x,identity=kerberos,operation=get", policy).allowed)
        found = self.explained("calling=A,from=::2,user=alice,operation=echo", Policy())
        self.assertTrue(found.allowed)
        self.assertIn("the user identity is ignored", found.lines[1])

    def test_options_of_the_server(self) -> None:
        text = "calling=CT1,from=10.1.2.3,operation=store"
        self.assertIn("require-called-aet: the title is OTHER", self.explained(text, called=["OTHER"]).lines[1])
        self.assertIn("allow-calling has MR1 only", self.explained(text, calling=["MR1"]).lines[1])
        self.assertTrue(self.explained(text, called=["ARCHIVE"], calling=["CT1"]).allowed)
        text = "calling=CT1,from=127.0.0.1,operation=replace"
        self.assertTrue(self.explained(text).allowed)
        self.assertIn("nobody replaces anything", self.explained(text, replaces=False).lines[1])
