"""
The options of ``twist dicom``.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.python import usage

from dicomtwist import __version__
from dicomtwist.access.policy import Policy
from dicomtwist.ae.ae import AE
from dicomtwist.archive.archive import Archive, Duplicates, Precedence
from dicomtwist.archive.storage.file_store import LAYOUT
from dicomtwist.archive.storage.types import Durability, StoreError
from dicomtwist.daemon.check import report
from dicomtwist.daemon.configuration import Configuration, ConfigurationError, add_configuration
from dicomtwist.daemon.forwarding.options import FORWARD_PARAMETERS, Forwarding, make_receipt, read_forwarding
from dicomtwist.daemon.http import HTTP_PARAMETERS, HTTPOptions
from dicomtwist.daemon.journals.options import JOURNAL_PARAMETERS, check_journals
from dicomtwist.daemon.log_options import DEFAULT_LOG_RATE, FORMATS, LEVELS, LogFile, set_log
from dicomtwist.daemon.option_values import charset, choice, count, member, seconds, size
from dicomtwist.daemon.option_values import title as checked_title
from dicomtwist.daemon.workers import MAX_WORKERS, WorkerSpec
from dicomtwist.forwarding.receipt.maker import Receipt
from dicomtwist.pixels.pool import PROCESSES
from dicomtwist.presentation import STORAGE_TRANSFER_SYNTAXES, AllStoragePresentationContexts
from dicomtwist.runtime.networks import Networks, parse_networks
from dicomtwist.settings import Settings
from dicomtwist.trace import trace
from dicomtwist.transport.listening_sockets import Sockets
from dicomtwist.transport.peer_directory import Peers
from twisted import __version__ as twisted_version

#: The exit status of a command with wrong options (sysexits.h).
_EX_USAGE = 64

#: The default space that stays free on the disk, in bytes: enough to close the index, and for an operator to act.
DEFAULT_MIN_FREE = 128 * 1024 * 1024

#: The longest data set of a request of DIMSE-N, such as one for storage commitment, in bytes. Instances are streamed.
MAX_BUFFERED = 16 * 1024 * 1024

DEFAULT_PORT = "tcp:11112:interface=127.0.0.1"

_DEFAULTS = Settings()


#: The options that are settings of the AE.
_SETTINGS = {
    "max-pdu": "maximum_pdu_size",
    "max-associations": "maximum_associations",
    "max-connections": "maximum_connections",
    "max-connections-per-peer": "maximum_connections_per_peer",
    "max-association-rate": "maximum_association_rate",
    "max-object-size": "maximum_object_size",
    "max-refusals-logged": "maximum_refusals_logged",
    "max-identifier-size": "maximum_identifier_size",
    "max-identifier-elements": "maximum_identifier_elements",
    "max-identifier-values": "maximum_identifier_values",
    "max-attributes": "maximum_attributes",
    "max-attribute-values": "maximum_attribute_values",
    "max-request-memory": "maximum_request_memory",
    "acse-timeout": "acse_timeout",
    "dimse-timeout": "dimse_timeout",
    "network-timeout": "network_timeout",
    "write-timeout": "write_timeout",
    "pdu-timeout": "pdu_timeout",
}


#: The options that may be given more than once, with the keys of their values; the peers have a directory of their own.
_LISTS = {
    "port": "ports",
    "http": "http",
    "http-origin": "origins",
    "viewer-http": "viewer-ports",
    "allow-calling": "calling",
    "trusted-proxy": "proxies",
}


class Options(HTTPOptions):
    """
    The options of ``twist dicom``.

    :ivar configuration: the content of the configuration file.
    :ivar given: the options of the command line.
    :ivar by_name: the values of the options by their names, without peers: as given, or the defaults.
    :ivar log_file: the file of the log; ``None`` without ``twist``.
    :ivar worker: the specification of this worker process; ``None`` in any other process.
    :ivar sockets: the sockets to listen on: those for DICOM, then those for HTTP.
    :ivar endpoints: the endpoints of the sockets for DICOM.
    :ivar http_endpoints: the endpoints of the sockets for HTTP.
    :ivar networks: the trusted proxies.
    :ivar peers: the addresses of other AEs.
    :ivar policy: the access rules.
    :ivar forwarding: the rules of forwarding.
    :ivar receipt: makes tasks of forwarding, ``None`` if nothing is forwarded.
    :ivar ae: the AE, with its settings.
    :ivar archive: the archive, open.
    """

    configuration: Configuration
    given: list[str]
    by_name: dict[str, Any]
    log_file: LogFile | None
    worker: WorkerSpec | None
    sockets: Sockets
    endpoints: list[IStreamServerEndpoint]
    http_endpoints: list[IStreamServerEndpoint]
    networks: Networks
    peers: Peers
    policy: Policy
    forwarding: Forwarding
    receipt: Receipt | None
    ae: AE
    archive: Archive

    synopsis = "[options]"
    longdesc = (
        f"A DICOM archive. Every instance that a peer sends becomes a file STORAGE/{LAYOUT} and a row in the "
        "index STORAGE/.index, and is acknowledged when both are on the disk."
    )

    # A default is a converted value: usage.Options converts only values that are given.
    optParameters = [
        ["config", None, None, "TOML file with these options, peers and rules; options given here override it."],
        [
            "workers",
            None,
            1,
            "Processes that serve the ports; if more than one, a supervisor process restarts them.",
            count("--workers", 1, MAX_WORKERS),
        ],
        ["ae-title", None, "DICOMTWIST", "AE title of this server.", checked_title],
        ["storage", None, "dicom-archive", "Folder for the received instances; created if it is missing."],
        [
            "durability",
            None,
            Durability.FULL,
            "full: acknowledge an instance after fsync; none: no fsync, faster.",
            member("--durability", Durability),
        ],
        [
            "inbox",
            None,
            "on",
            "on: acknowledge a small instance in the inbox, its file follows within a second; off: make the file first.",
            choice("--inbox", ("on", "off")),
        ],
        [
            "duplicates",
            None,
            Duplicates.REPLACE,
            "If a new instance differs from the stored one: replace the stored one, keep it, or reject the new one.",
            member("--duplicates", Duplicates),
        ],
        [
            "precedence",
            None,
            Precedence.LAST,
            "Of attributes of a patient or study that disagree among instances, the index has the last or the first.",
            member("--precedence", Precedence),
        ],
        [
            "min-free",
            None,
            DEFAULT_MIN_FREE,
            "Bytes (500M, 10G) that stay free on the disk; with fewer, instances are refused.",
            size("--min-free"),
        ],
        [
            "default-charset",
            None,
            None,
            "Character set of text that comes without one, such as ISO_IR 100; none: it is unknown.",
            charset,
        ],
        ["worklist", None, None, "Folder with the worklist files (*.wl, TITLE/*.wl) that modalities query."],
        [
            "worklist-deadline",
            None,
            10.0,
            "Seconds that a query of the worklist waits without any progress.",
            seconds("--worklist-deadline"),
        ],
        [
            "image-processes",
            None,
            PROCESSES,
            "Most processes that decode images: to render them, and for peers that do not take them as stored; 0 for none.",
            count("--image-processes", 0, 256),
        ],
        *HTTP_PARAMETERS,
        *JOURNAL_PARAMETERS,
        *FORWARD_PARAMETERS,
        ["import", None, None, "Folder whose DICOM files are copied into the archive while it serves."],
        [
            "max-pdu",
            None,
            _DEFAULTS.maximum_pdu_size,
            "Longest P-DATA-TF accepted, in bytes; 0 for no limit.",
            count("--max-pdu", 0, 2**32 - 1),
        ],
        [
            "max-associations",
            None,
            _DEFAULTS.maximum_associations,
            "Most associations at once; one more is rejected (transient).",
            count("--max-associations", 1, 2**31),
        ],
        [
            "max-connections",
            None,
            _DEFAULTS.maximum_connections,
            "Most connections at once, with or without an association.",
            count("--max-connections", 1, 2**31),
        ],
        [
            "max-connections-per-peer",
            None,
            _DEFAULTS.maximum_connections_per_peer,
            "Most connections at once from one address.",
            count("--max-connections-per-peer", 1, 2**31),
        ],
        [
            "max-association-rate",
            None,
            _DEFAULTS.maximum_association_rate,
            "Most associations that one address may request in a minute; none for any number.",
            count("--max-association-rate", 1, 2**31, none=True),
        ],
        [
            "max-object-size",
            None,
            _DEFAULTS.maximum_object_size,
            "Longest data set accepted, in bytes.",
            count("--max-object-size", 1, 2**63),
        ],
        [
            "max-refusals-logged",
            None,
            _DEFAULTS.maximum_refusals_logged,
            "Most lines in the log about refused operations of one association.",
            count("--max-refusals-logged", 0, 2**31),
        ],
        [
            "log-rate",
            None,
            DEFAULT_LOG_RATE,
            "Most lines in the log about one address in a minute; none for any number.",
            count("--log-rate", 1, 2**31, none=True),
        ],
        [
            "log-format",
            None,
            None,
            "Format of the log: text or json. [default: text on a terminal, json elsewhere]",
            choice("--log-format", tuple(FORMATS)),
        ],
        [
            "log-level",
            None,
            None,
            f"Lowest level of events in the log: {', '.join(LEVELS)}. [default: that of twist, which is info]",
            choice("--log-level", tuple(LEVELS)),
        ],
        [
            "max-identifier-size",
            None,
            _DEFAULTS.maximum_identifier_size,
            "Longest identifier of a query or retrieval taken, in bytes.",
            count("--max-identifier-size", 1, 2**31),
        ],
        [
            "max-identifier-elements",
            None,
            _DEFAULTS.maximum_identifier_elements,
            "Most elements and items of an identifier.",
            count("--max-identifier-elements", 1, 2**31),
        ],
        [
            "max-identifier-values",
            None,
            _DEFAULTS.maximum_identifier_values,
            "Most values of an identifier, such as UIDs in a list.",
            count("--max-identifier-values", 1, 2**31),
        ],
        [
            "max-attributes",
            None,
            _DEFAULTS.maximum_attributes,
            "Most elements and items of what a request of DIMSE-N brings, such as a storage commitment: 3 for an instance.",
            count("--max-attributes", 1, 2**31),
        ],
        [
            "max-attribute-values",
            None,
            _DEFAULTS.maximum_attribute_values,
            "Most further values of elements of what a request of DIMSE-N brings.",
            count("--max-attribute-values", 1, 2**31),
        ],
        [
            "max-request-memory",
            None,
            _DEFAULTS.maximum_request_memory,
            "Most bytes of memory for the data sets of requests; one host has half. Images do not count.",
            count("--max-request-memory", 1, 2**40),
        ],
        [
            "acse-timeout",
            None,
            _DEFAULTS.acse_timeout,
            "Seconds in which an association request must arrive completely.",
            seconds("--acse-timeout"),
        ],
        [
            "dimse-timeout",
            None,
            _DEFAULTS.dimse_timeout,
            "Seconds without progress of a message until the association is aborted.",
            seconds("--dimse-timeout"),
        ],
        [
            "network-timeout",
            None,
            _DEFAULTS.network_timeout,
            "Seconds that an association may be idle.",
            seconds("--network-timeout"),
        ],
        [
            "write-timeout",
            None,
            _DEFAULTS.write_timeout,
            "Seconds in which a peer must accept some of the data sent to it.",
            seconds("--write-timeout"),
        ],
        [
            "pdu-timeout",
            None,
            _DEFAULTS.pdu_timeout,
            "Seconds in which a P-DATA-TF must arrive completely.",
            seconds("--pdu-timeout"),
        ],
        [
            "grace",
            None,
            10.0,
            "Seconds for associations to finish at a stop; none: as long as peers like.",
            seconds("--grace"),
        ],
        [
            "lag-warning",
            None,
            1.0,
            "Seconds by which the reactor may be late before that is logged; none: never.",
            seconds("--lag-warning"),
        ],
        [
            "executor-warning",
            None,
            5.0,
            "Seconds for which all threads of a kind may be busy before that is logged; none: never.",
            seconds("--executor-warning"),
        ],
        [
            "explain",
            None,
            None,
            "Print which rule allows a case, such as calling=CT1,from=10.1.2.3,operation=store, and end without serving.",
        ],
    ]
    optFlags = [
        ["require-called-aet", None, "Reject associations that call another AE title than --ae-title."],
        ["trace", None, "Log what each association proposes and gets, and each message of it, in words."],
        ["check", None, "Check the options and the configuration file, print what holds, and end without serving."],
    ]
    compData = usage.Completions(
        optActions={
            "config": usage.CompleteFiles("*.toml"),
            "storage": usage.CompleteDirs(),
            "worklist": usage.CompleteDirs(),
            "records": usage.CompleteFiles(),
            "forward-key": usage.CompleteFiles(),
            "viewer": usage.CompleteDirs(),
            "durability": usage.CompleteList(["full", "none"]),
            "inbox": usage.CompleteList(["on", "off"]),
            "log-format": usage.CompleteList(list(FORMATS)),
            "log-level": usage.CompleteList(list(LEVELS)),
            "precedence": usage.CompleteList([one.value for one in Precedence]),
            "duplicates": usage.CompleteList([one.value for one in Duplicates]),
        }
    )

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self["ports"] = []
        self["calling"] = []
        self["peer"] = []
        self["proxies"] = []
        self["http"] = []
        self["origins"] = []
        self["viewer-ports"] = []
        self.configuration = Configuration()
        self.log_file = None
        self.worker = None
        self._is_read_again = False

    def parseOptions(self, options: list[str] | None = None) -> None:
        """
        Parse *options*.

        :raises SystemExit: an option is wrong. (``twist`` itself would print the whole help after the one line that matters.)
        """
        arguments = sys.argv[1:] if options is None else options
        worker = self.worker = WorkerSpec.taken(os.environ)
        ahead = 0 if worker is None else worker.ahead
        self.given = list(arguments[ahead:])
        try:
            self._parse(None if worker is None else arguments[:ahead])
        except ConfigurationError as error:
            print(f"twist dicom: {error}", file=sys.stderr)
            raise SystemExit(_EX_USAGE) from None
        except usage.UsageError as error:
            print(f"twist dicom: {self.configuration.located(str(error))}; see twist dicom --help", file=sys.stderr)
            raise SystemExit(_EX_USAGE) from None

    def _parse(self, in_force: Sequence[str] | None = None) -> None:
        """
        Parse the options of the command line, and those of the configuration file.

        :param in_force: see :func:`add_configuration`.
        :raises ConfigurationError: the configuration file is wrong.
        :raises usage.UsageError: an option is wrong.
        """
        self.configuration, arguments = add_configuration(self, self.given, in_force)
        super().parseOptions(arguments)  # type: ignore[no-untyped-call]

    def read_again(self) -> Options:
        """
        Return the options as the same command line has them now, checked as ``--check`` does. It blocks, and changes nothing.

        :raises ConfigurationError: there is a mistake, in the words of ``--check``.
        """
        found = Options()
        found.given, found.worker = self.given, self.worker
        found._is_read_again = True
        try:
            found._parse()
        except usage.UsageError as error:
            raise ConfigurationError(found.configuration.located(str(error))) from None
        return found

    def opt_version(self) -> None:
        """Print the version of dicomtwist, and exit."""
        print(f"dicomtwist {__version__} (Twisted {twisted_version})")
        raise SystemExit(0)

    def opt_port(self, description: str) -> None:
        """
        Port to listen on: an endpoint string, or a number for tcp. May be given more than once.
        [default: tcp:11112:interface=127.0.0.1]
        """
        self["ports"].append(description)

    def opt_allow_calling(self, title: str) -> None:
        """Calling AE title that may associate; without this option all may. May be given more than once."""
        self["calling"].append(checked_title(title))

    def opt_peer(self, description: str) -> None:
        """
        Address of an AE: TITLE=host:port, TITLE=endpoint-string, or @FILE with one of them on each line, which is read
        again at SIGHUP. May be given more than once.
        """
        self["peer"].append(description)

    def opt_trusted_proxy(self, network: str) -> None:
        """
        Proxy that is trusted to tell the addresses of its clients, by PROXY headers on a port haproxy:... or by X-Forwarded-
        fields of HTTP: an address, a network, loopback or unix. May be given more than once. [default: loopback and unix]
        """
        self["proxies"].append(network)

    def postOptions(self) -> None:
        """Check the options together, so that a mistake becomes one line and not a traceback."""
        from twisted.internet import reactor

        self.by_name = self._named_values()
        if not self._is_read_again:
            self.log_file = set_log(self.parent, self["log-format"], self["log-rate"], self["log-level"])
        self.check_viewer()
        check_journals(self, reactor)
        try:
            self.sockets = self._sockets(reactor)
            endpoints = self.sockets.endpoints()
        except ValueError as error:
            names = ["port", *(["http"] if self["http"] else []), *(["viewer-http"] if self["viewer"] else [])]
            raise usage.UsageError(f"--{' or --'.join(names)}: {error}") from None
        count = len(endpoints) - len(self.web_ports)
        self.endpoints, self.http_endpoints = endpoints[:count], endpoints[count:]
        try:
            self.peers = Peers(reactor, self["peer"])
        except ValueError as error:
            raise usage.UsageError(f"--peer: {error}") from None
        self.policy = self.configuration.policy()
        self.forwarding = read_forwarding(self.configuration, self["forward-key"], self.peers.names())
        settings = Settings()
        self.set_settings(settings)
        self.networks = parse_networks(settings.trusted_proxies)
        if self["import"] is not None and not Path(self["import"]).is_dir():
            raise usage.UsageError(f"--import: {self['import']} is not a folder")
        if self["worklist"] is not None and not Path(self["worklist"]).is_dir():
            raise usage.UsageError(f"--worklist: {self['worklist']} is not a folder")
        if self._is_report:
            raise SystemExit(report(self))
        if self._is_read_again:
            return
        self.ae = _make_ae(self)
        self.receipt = make_receipt(self)
        self.archive = Archive(
            self.archive_root,
            durability=self["durability"],
            duplicates=self["duplicates"],
            precedence=self["precedence"],
            inbox=self["inbox"] == "on",
            min_free=self["min-free"],
            default_charset=self["default-charset"] or "",
            process=self.worker.name if self.worker else "supervisor" if self["workers"] > 1 else "",
            lock=self.worker.lock if self.worker else -1,
            tasks=self.receipt,
        )
        try:
            self.archive.open()
        except (StoreError, OSError) as error:
            raise usage.UsageError(f"--storage: {error}") from None

    @property
    def archive_root(self) -> Path:
        """The folder of the archive."""
        return Path(self["storage"])

    @property
    def _is_report(self) -> bool:
        """Whether the options ask for a report, and for no service."""
        return bool(self["check"]) or self["explain"] is not None

    def _sockets(self, reactor: Any) -> Sockets:
        """Return the sockets to listen on: new ones, or in a worker process those of the supervisor."""
        worker = self.worker
        if worker is not None and not self._is_read_again:
            return Sockets(reactor, worker.ports, inherited=worker.sockets)
        self["ports"] = self["ports"] or [DEFAULT_PORT]
        ports = [*self["ports"], *self.web_ports]
        if self._is_report or self._is_read_again:
            # Only a process that systemd starts has these sockets, and only once.
            ports = [port for port in ports if not re.search(r"(^|:)systemd:", str(port))]
        sockets = Sockets(reactor, ports, only_held=self["workers"] > 1)
        if self["workers"] > 1:
            sockets.check_shareable()
        return sockets

    def _named_values(self) -> dict[str, Any]:
        known: Any = self
        names = [one[0] for one in (*known.optParameters, *known.optFlags)]
        return {name: self[name] for name in names} | {name: list(self[key]) for name, key in _LISTS.items()}

    def set_settings(self, settings: Settings) -> None:
        """
        Set the settings of an AE.

        :raises usage.UsageError: one of them refuses the value of its option.
        """
        for option, setting in _SETTINGS.items():
            try:
                setattr(settings, setting, self[option])
            except (ValueError, TypeError) as error:
                raise usage.UsageError(f"--{option}: {error}") from None
        try:
            settings.trusted_proxies = self["proxies"] or Settings().trusted_proxies
        except ValueError as error:
            raise usage.UsageError(f"--trusted-proxy: {str(error).partition(': ')[2]}") from None
        settings.require_called_aet = bool(self["require-called-aet"])
        settings.require_calling_aet = self["calling"]


def _make_ae(options: Options) -> AE:
    """Return the AE with the settings of *options*."""
    ae = AE(options["ae-title"])
    if options["trace"]:
        trace(ae)
    options.set_settings(ae.settings)
    ae.settings.maximum_buffered_size = MAX_BUFFERED
    # The archive stores instances of every storage class, also of private ones and of those newer than this program.
    ae.settings.promiscuous = True
    # The archive stores instances as the peer has them: compressed ones unchanged, others with their VRs.
    ae.settings.keep_compression = True
    for context in AllStoragePresentationContexts:
        # Both roles, for C-GET: a peer that retrieves is the SCP of the instances that it gets.
        ae.add_supported_context(context.abstract_syntax or "", STORAGE_TRANSFER_SYNTAXES, scu_role=True, scp_role=True)
    ae.add_supported_context("1.2.840.10008.1.1")
    return ae
