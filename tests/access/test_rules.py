"""Access rules, users and certificate patterns, without a network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.access.certificates import Certificate, parse_pattern
from dicomtwist.access.rules import (
    DEFAULT_RULES,
    EVERYTHING,
    MAX_RULES,
    UNIX,
    Identity,
    Operation,
    Rejection,
    Requestor,
    parse_rules,
)
from dicomtwist.access.users import MAX_SCRYPT_PASSES, UserEntry, Users, hash_passcode

ECHO_AND_STORE = {Operation.ECHO, Operation.STORE}


def cheap(name: str, passcode: bytes) -> UserEntry:
    """Make an entry whose check is fast."""
    return hash_passcode(name, passcode, n=16)


def requestor(called: str = "ARCHIVE", calling: str = "CT1", address: str = "10.1.0.5", **more: Any) -> Requestor:
    return Requestor(called, calling, address, **more)


def certificate(name: str, **keywords: Any) -> x509.Certificate:
    """Make a certificate with *name* as its common name."""
    pem = trustme.CA().issue_cert("host.example.org", common_name=name, **keywords).cert_chain_pems[0].bytes()
    return x509.load_pem_x509_certificate(pem)


class Defaults(SynchronousTestCase):
    """Without a configuration, this machine may do anything, and others may echo and store."""

    def test_this_machine(self) -> None:
        for address in ("127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1", UNIX):
            self.assertEqual(DEFAULT_RULES.allowed(requestor(address=address)), EVERYTHING, address)

    def test_others(self) -> None:
        for address in ("10.1.0.5", "128.0.0.1", "::2", "::ffff:10.0.0.1", "fe80::1%eth0", "", "/run/dicom.sock", "x"):
            self.assertEqual(DEFAULT_RULES.allowed(requestor(address=address)), ECHO_AND_STORE, address)
            self.assertIsNone(DEFAULT_RULES.rejection(requestor(address=address)))


class Fitting(SynchronousTestCase):
    """Each condition of a rule matches the peers that it should, and no others."""

    def allows(self, who: Requestor, **condition: Any) -> bool:
        """Whether a rule with *condition* allows *who* anything."""
        conditions = {key.rstrip("_"): value for key, value in condition.items()}
        return bool(parse_rules([{**conditions, "allow": "echo"}]).allowed(who))

    def test_titles(self) -> None:
        for pattern, title, fits in (
            ("CT1", "CT1", True),
            ("CT1", "CT12", False),
            ("CT1", "ct1", False),
            ("CT*", "CT12", True),
            ("CT?", "CT12", False),
            ("CT?", "CT1", True),
            ("*", "ANY", True),
            ("C.1", "CT1", False),
            ("[C]T1", "CT1", False),
        ):
            self.assertEqual(self.allows(requestor(calling=title), calling=pattern), fits, (pattern, title))
            self.assertEqual(self.allows(requestor(called=title), called=["X", pattern]), fits, (pattern, title))

    def test_networks(self) -> None:
        for network, address, fits in (
            ("10.1.0.0/16", "10.1.255.255", True),
            ("10.1.0.0/16", "10.2.0.0", False),
            ("10.1.0.0/16", "::ffff:10.1.2.3", True),
            ("10.1.0.5", "10.1.0.5", True),
            ("2001:db8::/32", "2001:db8::7", True),
            ("2001:db8::/32", "10.1.0.5", False),
            ("fe80::/10", "fe80::1%eth0", True),
            ("loopback", "127.0.0.1", True),
            ("loopback", "10.1.0.5", False),
            ("loopback", UNIX, False),
            ("unix", UNIX, True),
            ("unix", "127.0.0.1", False),
            ("unix", "", False),
            ("0.0.0.0/0", "", False),
        ):
            self.assertEqual(self.allows(requestor(address=address), from_=[network]), fits, (network, address))

    def test_users(self) -> None:
        alice = requestor(user="alice", identity=Identity.PASSCODE)
        self.assertTrue(self.allows(alice, user="alice"))
        self.assertFalse(self.allows(alice, user=["bob"]))
        self.assertFalse(self.allows(requestor(), user="alice"))
        self.assertTrue(self.allows(alice, identity="passcode"))
        self.assertFalse(self.allows(alice, identity="username", user="alice"))
        self.assertFalse(self.allows(requestor(), identity=["jwt"]))
        # Before the identity is checked, it matches any user.
        self.assertTrue(self.allows(requestor(undecided=True), user="alice"))

    def test_certificates(self) -> None:
        shown = certificate("ct1", organization_name="Hospital, North")
        who = requestor(certificate=Certificate.of(shown))
        fingerprint = shown.fingerprint(SHA256()).hex()
        colons = ":".join(fingerprint[at : at + 2] for at in range(0, 64, 2))
        for pattern, fits in (
            ("CN=ct1", True),
            ("O=Hospital\\, North", True),
            ("O=Hospital\\, North,CN=ct1", True),
            ("CN=ct1,O=Hospital", False),
            ("CN=CT1", False),
            ("CN=ct", False),
            ("OU=ct1", False),
            (f"sha256:{fingerprint}", True),
            (f"sha256:{colons.upper()}", True),
            (f"sha256:{'0' * 64}", False),
        ):
            self.assertEqual(self.allows(who, certificate=pattern), fits, pattern)
            self.assertFalse(self.allows(requestor(), certificate=pattern), "no certificate is none")

    def test_a_subject_cannot_pretend(self) -> None:
        """Text in a value that looks like another attribute stays part of the value."""
        who = requestor(certificate=Certificate.of(certificate("ct1,O=Hospital")))
        self.assertFalse(self.allows(who, certificate="O=Hospital"))
        self.assertFalse(self.allows(who, certificate="CN=ct1"))

    def test_all_conditions_together(self) -> None:
        rules = parse_rules([{"calling": "CT1", "from": "10.1.0.0/16", "allow": ["store"]}])
        self.assertEqual(rules.allowed(requestor()), {Operation.STORE})
        self.assertEqual(rules.allowed(requestor(calling="CT2")), frozenset())
        self.assertEqual(rules.allowed(requestor(address="10.2.0.1")), frozenset())

    def test_any_rule(self) -> None:
        rules = parse_rules([{"allow": "echo"}, {"calling": "CT1", "allow": ["find", "move"]}, {"allow": []}])
        self.assertEqual(rules.allowed(requestor()), {Operation.ECHO, Operation.FIND, Operation.MOVE})
        self.assertEqual(rules.allowed(requestor(calling="X")), {Operation.ECHO})
        self.assertEqual(parse_rules([{"allow": ["all"]}]).allowed(requestor()), EVERYTHING)
        self.assertIn(Operation.ADMIN, EVERYTHING)
        self.assertEqual(parse_rules([{"allow": "admin"}]).allowed(requestor()), {Operation.ADMIN})


class Rejections(SynchronousTestCase):
    """A peer that may do nothing is rejected with the reason that PS3.8 9.3.4 has for it."""

    def reasons(self, rejection: Rejection | None) -> tuple[int, int, int]:
        assert rejection is not None
        return rejection.result, rejection.source, rejection.reason

    def test_reasons(self) -> None:
        rules = parse_rules([{"called": "ARCHIVE", "calling": "CT1", "from": "10.0.0.0/8", "allow": "store"}])
        self.assertIsNone(rules.rejection(requestor()))
        self.assertEqual(self.reasons(rules.rejection(requestor(called="X"))), (1, 1, 7))
        self.assertEqual(self.reasons(rules.rejection(requestor(calling="X"))), (1, 1, 3))
        self.assertEqual(self.reasons(rules.rejection(requestor(address="11.0.0.1"))), (1, 1, 1))
        self.assertEqual(self.reasons(parse_rules([]).rejection(requestor())), (1, 1, 7))

    def test_allowing_nothing(self) -> None:
        self.assertEqual(self.reasons(parse_rules([{"allow": []}]).rejection(requestor())), (1, 1, 1))


class NearestRules(SynchronousTestCase):
    """The log of a rejection or refusal names the rule that comes nearest, and what does not match."""

    RULES = parse_rules(
        [
            {"name": "this machine", "from": ["loopback", "unix"], "allow": "all"},
            {"name": "modalities", "calling": ["CT*", "MR*"], "from": "10.1.0.0/16", "allow": ["echo", "store"]},
            {"name": "workstations", "calling": "WORKSTATION", "from": "10.2.0.7", "allow": ["find", "move"]},
            {"user": "alice", "certificate": "CN=x,O=H", "from": "10.3.0.0/16", "allow": "find"},
        ],
        "access.rule",
    )

    def test_rejections(self) -> None:
        for details, reason, words in (
            ({"calling": "ct1"}, 3, "access.rule 2 'modalities': the calling AE title is 'ct1', not CT*, MR*"),
            (
                {"calling": "WORKSTATIO", "address": "10.2.0.7"},
                3,
                "access.rule 3 'workstations': the calling AE title is 'WORKSTATIO', not WORKSTATION",
            ),
            (
                {"calling": "WORKSTATI0N", "address": "10.9.9.9"},
                3,
                "access.rule 3 'workstations': the calling AE title is 'WORKSTATI0N', not WORKSTATION"
                "; the address is '10.9.9.9', not in 10.2.0.7",
            ),
            ({"address": "10.9.9.9"}, 1, "access.rule 2 'modalities': the address is '10.9.9.9', not in 10.1.0.0/16"),
            ({"address": "127.0.0.1", "proxied": True}, 1, "the address is '127.0.0.1' from a proxy, not in"),
            (
                {"address": "10.3.0.1", "calling": "X", "user": "bob"},
                1,
                "access.rule 4: there is no certificate, and it needs CN=x,O=H; the user is 'bob', not alice",
            ),
        ):
            rejection = self.RULES.rejection(requestor(**details))
            assert rejection is not None
            self.assertEqual(rejection.reason, reason, rejection.words)
            self.assertIn(f"the nearest is {words}" if words.startswith("access") else words, rejection.words)

    def test_rules_that_recognize_the_peer(self) -> None:
        rules = parse_rules(
            [
                {"calling": "CT*", "certificate": "CN=ct1", "allow": ["echo", "store"]},
                {"calling": "MR1", "called": "ARCHIVE", "from": "10.0.0.0/8", "allow": ["echo", "store"]},
                {"calling": "US?", "user": "sono", "identity": "passcode", "allow": ["echo", "store"]},
                {"calling": ["?*", "*"], "called": "ARCHIVE", "from": "10.0.0.0/8", "identity": "jwt", "allow": "echo"},
                {"calling": "WS7", "certificate": "CN=ws7", "user": "alice", "allow": "find"},
            ]
        )
        for details, reason, words in (
            ({"calling": "CT1"}, 1, "rule 1: there is no certificate, and it needs CN=ct1"),
            ({"calling": "MR1", "called": "ELSE"}, 7, "rule 2: the called AE title is 'ELSE', not ARCHIVE"),
            (
                {"calling": "US1"},
                1,
                "rule 3: there is no user, and it needs sono; there is no user identity, and it needs passcode",
            ),
            ({"calling": "WS9", "user": "alice"}, 3, "rule 5: the calling AE title is 'WS9', not WS7; there is no"),
        ):
            rejection = rules.rejection(requestor(**details))
            assert rejection is not None
            self.assertEqual(rejection.reason, reason, rejection.words)
            self.assertIn(f"the nearest is {words}", rejection.words)

    def test_refusals(self) -> None:
        self.assertEqual(self.RULES.explain_refusal(requestor(), {Operation.STORE}), "")
        words = self.RULES.explain_refusal(requestor(), {Operation.MOVE})
        self.assertTrue(words.startswith("the nearest is access.rule 3 'workstations'"), words)
        rules = parse_rules([{"allow": "echo"}])
        self.assertEqual(rules.explain_refusal(requestor(), {Operation.MOVE}), "there is no rule with move")

    def test_long_lists_and_odd_values(self) -> None:
        """A text names few of the values of a condition, and no control character of a peer or of a certificate."""
        rules = parse_rules([{"calling": [f"CT{number}" for number in range(50)], "allow": "store"}])
        rejection = rules.rejection(requestor(calling="X\n\x1b"))
        assert rejection is not None
        self.assertIn("'X\\n\\x1b', not CT0, CT1, CT2, CT3, CT4 or 45 more", rejection.words)
        shown = Certificate(frozenset({("2.5.4.3", "a\n\x1bb" * 16)}), "0" * 64)
        rules = parse_rules([{"certificate": "CN=ct1", "allow": "store"}])
        rejection = rules.rejection(requestor(certificate=shown))
        assert rejection is not None
        self.assertTrue(rejection.words.isprintable())
        self.assertLess(len(rejection.words), 500)
        self.assertIn("the certificate is CN=a", rejection.words)
        self.assertIn("not CN=ct1", rejection.words)


class Mistakes(SynchronousTestCase):
    """An error names the rule and the key."""

    def test_each(self) -> None:
        rule = {"allow": "echo"}
        for tables, words in (
            ({"allow": "echo"}, "write each rule as a table"),
            ([rule, "x"], "write each rule as a table"),
            ([rule, {**rule, "caling": "X"}], "rule 2: caling is not a key: did you mean calling?"),
            ([{**rule, "zzz": "X"}], "rule 1: zzz is not a key: there are name,"),
            ([{"calling": "X"}], "rule 1: allow is missing"),
            ([{"allow": "ecko"}], "rule 1: 'ecko' is not known: did you mean echo?"),
            ([{"allow": [1]}], "rule 1: allow is a text or a list of texts"),
            ([{**rule, "calling": []}], "rule 1: calling is empty"),
            ([{**rule, "calling": [""]}], "rule 1: calling is empty"),
            ([{**rule, "calling": "A" * 17}], "17 characters"),
            ([{**rule, "from": "10.1.0.5/16"}], "has host bits set"),
            ([{**rule, "from": "pacs.example.org"}], "write an address, a network"),
            ([{**rule, "identity": "passcod"}], "did you mean passcode?"),
            ([{**rule, "certificate": "ct1"}], "'ct1' describes no certificate"),
            ([{**rule, "certificate": "CN="}], "describes no certificate"),
            ([{**rule, "certificate": "sha256:abc"}], "is not a fingerprint"),
            ([rule] * (MAX_RULES + 1), f"more than {MAX_RULES} rules"),
        ):
            error = self.assertRaises(ValueError, parse_rules, tables)
            self.assertIn(words, str(error))

    def test_patterns(self) -> None:
        self.assertRaises(ValueError, parse_pattern, "")


class Passcodes(SynchronousTestCase):
    """The file of users."""

    def users(self, text: str) -> Users:
        path = Path(self.mktemp())
        path.write_text(text)
        return Users(path)

    def test_verify(self) -> None:
        alice, bob = cheap("alice", b"secret"), cheap("bob", b"s\xc3\xbcss")
        self.assertNotEqual(str(alice), str(cheap("alice", b"secret")), "each has a salt of its own")
        users = self.users(f"# users\n\n{alice}\n{bob}\n")
        self.assertEqual(len(users), 2)
        self.assertIn("alice", users)
        for _ in range(2):  # the second time the passcode is cached
            self.assertTrue(users.verify("alice", b"secret"))
            self.assertTrue(users.verify("bob", b"s\xc3\xbcss"))
            self.assertFalse(users.verify("alice", b"Secret"))
            self.assertFalse(users.verify("alice", b""))
            self.assertFalse(users.verify("bob", b"secret"))
            self.assertFalse(users.verify("carol", b"secret"))
        self.assertNotIn("secret", f"{alice!r}")

    def test_mistakes(self) -> None:
        good = str(cheap("alice", b"secret"))
        fields = good.split(":")

        def changed(at: int, value: str) -> str:
            return ":".join([*fields[:at], value, *fields[at + 1 :]])

        for line in (
            "alice:secret",
            changed(0, ""),
            changed(0, "al\x07ice"),
            changed(1, "plain"),
            changed(2, "1000"),
            changed(2, str(2**30)),
            changed(3, "0"),
            changed(4, str(MAX_SCRYPT_PASSES + 1)),
            changed(5, "!!"),
            changed(6, "QUJD"),
            good + ":",
        ):
            error = self.assertRaises(ValueError, self.users, f"{good}\n{line}\n")
            self.assertIn("line 2 is not a user entry", str(error))
            self.assertNotIn("secret", str(error))
        self.assertIn("cannot read", str(self.assertRaises(ValueError, Users, Path("nowhere"))))

    def test_command(self) -> None:
        """The command prints a line for the file."""

        def run(*arguments: str, passcode: str = "secret\n") -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "dicomtwist.access.users", *arguments]
            return subprocess.run(command, input=passcode, capture_output=True, text=True, timeout=120)

        made = run("alice")
        self.assertEqual((made.returncode, made.stderr), (0, ""))
        self.assertTrue(self.users(made.stdout).verify("alice", b"secret"))
        for wrong in (run("al:ice"), run("alice", passcode="\n"), run()):
            self.assertNotEqual(wrong.returncode, 0)
            self.assertEqual(len(wrong.stderr.splitlines()), 1)
            self.assertEqual(wrong.stdout, "")
