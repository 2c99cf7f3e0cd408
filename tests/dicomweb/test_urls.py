"""URLs of services of DICOMweb."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.dicomweb.urls import BaseURL, is_url


class Base(SynchronousTestCase):
    def test_this_machine(self) -> None:
        """Credentials go to this machine without TLS, and not to a name that only looks like it."""
        for host, is_here in {
            "localhost": True,
            "127.0.0.1": True,
            "127.9.9.9": True,
            "[::1]": True,
            "127.0.0.1.example.org": False,
            "127.example.org": False,
            "localhost.example.org": False,
            "10.0.0.1": False,
            "[2001:db8::1]": False,
        }.items():
            self.assertEqual(BaseURL.parse(f"http://{host}:8042/dicom-web").is_loopback, is_here, host)

    def test_what_is_meant_as_one(self) -> None:
        for text, is_one in {
            "https://a/": True,
            " HTTP://a": True,
            "http:a": False,
            "AET@a:104": False,
            "tls:a:1": False,
            "": False,
        }.items():
            self.assertEqual(is_url(text), is_one, text)
