"""dicomtwist.web.viewer.folder: the files that paths of URLs lead to."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.web.viewer.folder import NoSuchFile, StaticFolder


class Folders(SynchronousTestCase):
    def setUp(self) -> None:
        self.outside = Path(self.mktemp()).absolute()
        self.root = self.outside / "dist"
        (self.root / "assets").mkdir(parents=True)
        (self.outside / "secret.txt").write_text("secret")
        for name in ("index.html", "app.js", "assets/logo.svg", ".env", "a b.txt"):
            (self.root / name).write_text(name)
        self.folder = StaticFolder(self.root)

    def content(self, path: str) -> str:
        file = self.folder.open(path)
        self.addCleanup(file.close)
        return b"".join(file.pieces()).decode()

    def page(self, path: str) -> str:
        file = self.folder.open_page(path)
        file.close()
        return file.name

    def test_files(self) -> None:
        for name in ("index.html", "app.js", "assets/logo.svg", "a b.txt"):
            self.assertEqual(self.content(f"/{name}"), name)

    def test_what_is_not_served(self) -> None:
        """Nothing outside of the folder, no folder, no hidden file, nothing but regular files."""
        (self.root / "out.txt").symlink_to(self.outside / "secret.txt")
        (self.root / "up").symlink_to(self.outside)
        (self.root / "loop").symlink_to(self.root / "loop")
        (self.root / "nothing.js").symlink_to(self.root / "gone.js")
        os.mkfifo(self.root / "pipe")
        (self.root / "closed.js").write_text("")
        (self.root / "closed.js").chmod(0)
        for path in (
            *("", "/", "//", "/assets", "/assets/", "/assets//logo.svg", "//app.js", "/app.js/", "/app.js/x"),
            *(
                "/../secret.txt",
                "/assets/../../secret.txt",
                "/assets/../app.js",
                "/./app.js",
                "/.env",
                "/..",
                "/..\\secret.txt",
            ),
            *("/out.txt", "/up/secret.txt", "/loop", "/nothing.js", "/pipe", "/missing.js"),
            *("/app.js\0", "/app\n.js", "/" + "a" * 300, "/" + "a/" * 1000, str(self.outside / "secret.txt")),
            *(["/closed.js"] if os.geteuid() else []),
        ):
            with self.assertRaises(NoSuchFile, msg=path):
                self.folder.open(path)

    def test_links_within(self) -> None:
        """A link within the folder leads to its file, and the folder itself may be a link that is changed."""
        (self.root / "latest.js").symlink_to("app.js")
        self.assertEqual(self.content("/latest.js"), "app.js")
        current, newer = self.outside / "current", self.outside / "newer"
        newer.mkdir()
        (newer / "app.js").write_text("newer")
        current.symlink_to(self.root)
        self.folder = StaticFolder(current)
        self.assertEqual(self.content("/app.js"), "app.js")
        current.unlink()
        current.symlink_to(newer)
        self.assertEqual(self.content("/app.js"), "newer")

    def test_pages(self) -> None:
        """A path within the viewer is its page; a file that is missing is not."""
        for path in ("/", "/viewer", "/viewer/dicomtwist", "/viewer/1.2.840.10008.1.2.3", "/assets", "/assets/"):
            self.assertEqual(self.page(path), "index.html", path)
        self.assertEqual(self.page("/app.js"), "app.js")
        for path in ("/gone.js", "/gone.WASM", "/assets/gone.png", "/../viewer", "/.git/config", "/" + "v" * 2000):
            with self.assertRaises(NoSuchFile, msg=path):
                self.page(path)

    def test_properties(self) -> None:
        for name, media_type, is_compressible, is_lasting in (
            ("app.bundle.096daabbdde29bd851ab.js", "text/javascript; charset=utf-8", True, True),
            ("17dd54813d5acc10bf8f.wasm", "application/wasm", True, True),
            ("31fb9346313fc3740d7b.WOFF2", "font/woff2", False, True),
            ("index.html", "text/html; charset=utf-8", True, False),
            ("app.bundle.css", "text/css; charset=utf-8", True, False),
            ("cafe.js", "text/javascript; charset=utf-8", True, False),
            ("readme", "application/octet-stream", False, False),
            ("a.unknown", "application/octet-stream", False, False),
        ):
            (self.root / name).write_text("")
            file = self.folder.open(f"/{name}")
            file.close()
            self.assertEqual(
                (file.media_type, file.is_compressible, file.is_lasting),
                (media_type, is_compressible, is_lasting),
                name,
            )

    def test_versions(self) -> None:
        """The version changes when the content does."""
        before = self.folder.open("/app.js")
        before.close()
        (self.root / "app.js").write_text("longer than before")
        after = self.folder.open("/app.js")
        after.close()
        self.assertNotEqual(before.version, after.version)
