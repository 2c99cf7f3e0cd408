"""
Chromium without a screen, for tests of web pages: its windows note all that goes wrong in them.

Playwright's calls block, so a test gives :func:`browse` a function, which runs in a thread. Nothing waits for a time: each call
waits for an element, or for a condition of the page, at most :data:`TIMEOUT`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Response, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from tests import peers

T = TypeVar("T")

#: The seconds in which a page has to do what is waited for; the machine may be busy with other tests.
TIMEOUT: Final = 60.0

#: No GPU is needed: WebGL is drawn by the processor. Chromium is kept from asking for updates and the like.
FLAGS: Final = (
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
)

#: The beginnings of URLs that stay on this machine; those of Chromium are of its own pages, as for PDF.
HERE: Final = ("http://127.0.0.1:", "https://127.0.0.1:", "blob:", "data:", "chrome:", "chrome-extension:")

#: Returns, of the first canvas with anything on it: how many grey values it has, and the largest difference of red and blue.
_LOOK: Final = """
(selector) => {
  for (const canvas of document.querySelectorAll(selector)) {
    const small = document.createElement("canvas");
    small.width = small.height = 64;
    const context = small.getContext("2d");
    context.drawImage(canvas, 0, 0, 64, 64);
    const data = context.getImageData(0, 0, 64, 64).data;
    const greys = new Set();
    let colour = 0;
    for (let i = 0; i < data.length; i += 4) {
      greys.add(data[i + 1]);
      colour = Math.max(colour, Math.abs(data[i] - data[i + 2]));
    }
    if (greys.size > 8) return { greys: greys.size, colour };
  }
  return null;
}
"""


@dataclass(frozen=True)
class Drawn:
    """
    An image on a canvas, seen at 64 x 64 pixels.

    :ivar greys: the number of different values of green.
    :ivar colour: the largest difference between red and blue in a pixel.
    """

    greys: int
    colour: int


@dataclass
class Window:
    """
    A window of the browser.

    :ivar page: the page of Playwright.
    :ivar problems: the errors on the console, the exceptions, the requests without a response or with a status from 400 on, and
        those that leave this machine.
    :ivar responses: all responses.
    """

    page: Page
    problems: list[str] = field(default_factory=list)
    responses: list[Response] = field(default_factory=list)
    _pending: dict[Request, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(TIMEOUT * 1000)
        self.page.on("console", self._message)
        self.page.on("pageerror", lambda error: self.problems.append(f"exception: {error}"))
        self.page.on("request", self._request)
        self.page.on("requestfailed", self._failed)
        self.page.on("requestfinished", lambda request: self._pending.pop(request, None))
        self.page.on("response", self._response)

    def _message(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.problems.append(f"console: {message.text}")

    def _request(self, request: Request) -> None:
        self._pending[request] = None
        if not request.url.startswith(HERE):
            self.problems.append(f"{request.method} {request.url} leaves this machine")

    def _failed(self, request: Request) -> None:
        self._pending.pop(request, None)
        if request.failure != "net::ERR_ABORTED":  # by the page, or because it is left
            self.problems.append(f"{request.method} {request.url} failed: {request.failure}")

    def _response(self, response: Response) -> None:
        self.responses.append(response)
        if response.status >= 400:
            self.problems.append(f"{response.request.method} {response.url} has the status {response.status}")

    def urls(self, text: str) -> list[str]:
        """Return the URLs with *text* that were responded to."""
        return [response.url for response in self.responses if text in response.url]

    @property
    def pending(self) -> list[str]:
        """The URLs of the requests that wait for their responses."""
        return [request.url for request in self._pending]

    def drawn(self, selector: str = "canvas", timeout: float = TIMEOUT) -> Drawn:
        """
        Wait until something is drawn on a canvas, and return what it looks like.

        :raises AssertionError: nothing is drawn in *timeout* seconds; the message says what the page is at.
        """
        try:
            found = self.page.wait_for_function(_LOOK, arg=selector, timeout=timeout * 1000).json_value()
        except PlaywrightTimeoutError:
            raise AssertionError(f"nothing is drawn\n{self.state()}") from None
        return Drawn(**found)

    def state(self) -> str:
        """Return in words what the page is at, for the message of a test that fails."""
        latest = [f"{one.status} {one.url}" for one in self.responses[-12:]]
        text = self.page.inner_text("body")[:1000]
        return "\n".join(
            [self.page.url, "pending:", *self.pending, "latest:", *latest, "problems:", *self.problems, "text:", text]
        )


@dataclass
class Chromium:
    """The running browser; its windows share a cache."""

    browser: Browser

    def window(self, *, width: int = 1280, height: int = 800, user: tuple[str, str] | None = None) -> Window:
        """
        Open a window with cookies and a cache of its own.

        :param user: the name and the passcode that are entered when a server asks for them.
        """
        context = self.browser.new_context(
            viewport={"width": width, "height": height},
            ignore_https_errors=True,
            http_credentials={"username": user[0], "password": user[1]} if user else None,
        )
        return Window(context.new_page())


def browse(use: Callable[[Chromium], T]) -> Deferred[T]:
    """
    Call *use* with a browser, in a thread; the browser ends with the call.

    :raises SkipTest: Chromium is not installed; :class:`~tests.peers.PeerError` if ``CI=true``.
    """
    path = peers.tool("chromium")

    def call() -> T:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS), timeout=TIMEOUT * 1000)
            try:
                return use(Chromium(browser))
            finally:
                browser.close()

    return deferToThread(call)
