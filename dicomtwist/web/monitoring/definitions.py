"""
The metrics of a server: their names, types, labels and meaning. One table, which the collection, the exposition, the
documentation and the tests share.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

__all__ = ["METRICS", "Metric", "Sample", "Snapshot"]

#: One series: its labels, then its value; of a histogram the labels, then the numbers in each class and their sum.
Sample: TypeAlias = list[object]
#: The samples of one process, by the names of the metrics, as JSON has them.
Snapshot: TypeAlias = dict[str, list[Sample]]


class Metric(NamedTuple):
    """
    A metric. Its series have the label ``process`` besides.

    :ivar kind: ``"counter"``, ``"gauge"`` or ``"histogram"``.
    :ivar labels: the names of its labels.
    :ivar words: its meaning.
    """

    kind: str
    labels: tuple[str, ...]
    words: str


#: All metrics by their names. The name of a counter ends in ``_total``; a histogram has the suffixes ``_bucket``, ``_sum``,
#: ``_count`` in what is exposed.
METRICS: Final[dict[str, Metric]] = {
    "dicomtwist_build_info": Metric("gauge", ("version",), "1; the label has the version"),
    "dicomtwist_process_up": Metric(
        "gauge", (), "1 if the process answered this scrape, 0 if it did not answer in time"
    ),
    "dicomtwist_process_start_time_seconds": Metric("gauge", (), "start of the process, in seconds since 1970"),
    "dicomtwist_process_resident_memory_bytes": Metric("gauge", (), "resident memory"),
    "dicomtwist_process_cpu_seconds_total": Metric("counter", (), "CPU time of the process and its ended children"),
    "dicomtwist_process_open_fds": Metric("gauge", (), "open file descriptors"),
    "dicomtwist_process_max_fds": Metric("gauge", (), "file descriptors that the process may have"),
    "dicomtwist_associations_total": Metric(
        "counter",
        ("role", "outcome", "by"),
        "associations that have ended, by the role of this side, the kind of the ending, and the side that ended them",
    ),
    "dicomtwist_associations_open": Metric("gauge", ("role",), "associations that are established"),
    "dicomtwist_association_seconds": Metric("histogram", ("role",), "durations of associations that have ended"),
    "dicomtwist_connections_open": Metric("gauge", ("protocol",), "open connections"),
    "dicomtwist_received_bytes_total": Metric(
        "counter", ("protocol",), "received bytes; of HTTP those of bodies of requests that have ended"
    ),
    "dicomtwist_sent_bytes_total": Metric(
        "counter", ("protocol",), "sent bytes; of HTTP those of bodies of responses that have ended"
    ),
    "dicomtwist_dimse_operations_total": Metric(
        "counter", ("service", "status"), "DIMSE operations that were performed for peers, by their final status"
    ),
    "dicomtwist_dimse_seconds": Metric(
        "histogram", ("service",), "from the arrival of a request to its final response"
    ),
    "dicomtwist_dimse_invoked_total": Metric(
        "counter", ("service", "status"), "DIMSE operations that this side has invoked, by the final status of the peer"
    ),
    "dicomtwist_dimse_invoked_seconds": Metric(
        "histogram", ("service",), "from the end of a request of this side to the final response of the peer"
    ),
    "dicomtwist_http_requests_total": Metric(
        "counter",
        ("method", "route", "status"),
        "requests of HTTP that have ended; status none if no response was sent",
    ),
    "dicomtwist_http_seconds": Metric(
        "histogram", ("route",), "from the header of a request to the end of its response"
    ),
    "dicomtwist_refused_total": Metric(
        "counter",
        ("protocol", "what"),
        "refusals by the access rules: an association, a user who was not confirmed, an operation",
    ),
    "dicomtwist_instances_total": Metric(
        "counter", ("outcome",), "instances that arrived, by outcome: stored, or the kind of the error"
    ),
    "dicomtwist_inbox_instances": Metric("gauge", (), "stored instances that have no file or no row yet"),
    "dicomtwist_inbox_unsettled_instances": Metric(
        "gauge", (), "stored instances that have a file, and that the inbox keeps until it is flushed"
    ),
    "dicomtwist_deleted_instances_total": Metric(
        "counter", (), "instances that were deleted, by requests and by the retention"
    ),
    "dicomtwist_deleted_bytes_total": Metric("counter", (), "bytes of their files that were removed"),
    "dicomtwist_deletions_unfinished": Metric("gauge", (), "deletions whose files are not all removed yet"),
    "dicomtwist_retention_deleted_studies_total": Metric(
        "counter", (), "studies that the retention has deleted, or would have with dry-run"
    ),
    "dicomtwist_retention_kept_studies": Metric(
        "gauge", (), "studies that the last look of the retention was to delete, and that are locked or wanted"
    ),
    "dicomtwist_forward_tasks": Metric(
        "gauge", ("destination", "state"), "tasks of forwarding; those that are done are kept for a time"
    ),
    "dicomtwist_forward_oldest_seconds": Metric(
        "gauge", ("destination",), "age of the oldest task that waits or is being sent, 0 if there is none"
    ),
    "dicomtwist_forward_sent_total": Metric("counter", ("peer",), "instances that the peer has taken"),
    "dicomtwist_forward_sent_bytes_total": Metric("counter", ("peer",), "bytes of these instances"),
    "dicomtwist_forward_failures_total": Metric("counter", ("peer",), "attempts to send an instance that failed"),
    "dicomtwist_forward_peer_up": Metric("gauge", ("peer",), "1 if the peer is used, 0 while it counts as down"),
    "dicomtwist_executor_threads": Metric("gauge", ("executor",), "threads that the executor may have"),
    "dicomtwist_executor_busy_threads": Metric("gauge", ("executor",), "threads that are at work"),
    "dicomtwist_executor_queued_calls": Metric("gauge", ("executor",), "calls that wait for a thread"),
    "dicomtwist_executor_refused_total": Metric(
        "counter", ("executor",), "calls that were refused, because the queue was full"
    ),
    "dicomtwist_executor_longest_call_seconds": Metric("gauge", ("executor",), "time of the longest current call"),
    "dicomtwist_executor_blocked_seconds": Metric(
        "gauge", ("executor",), "time for which all threads have been at the same calls, 0 if one is free"
    ),
    "dicomtwist_image_processes": Metric("gauge", (), "processes that convert images"),
    "dicomtwist_image_jobs_queued": Metric("gauge", (), "images that wait for a process"),
    "dicomtwist_reactor_lag_seconds": Metric(
        "histogram", (), "the time by which timers of the reactor were late, measured twice a second"
    ),
    "dicomtwist_reactor_lag_maximum_seconds": Metric("gauge", (), "the maximum of the last minute"),
    "dicomtwist_disk_free_bytes": Metric("gauge", (), "free space of the file system of the archive"),
    "dicomtwist_disk_size_bytes": Metric("gauge", (), "size of that file system"),
    "dicomtwist_disk_reserved_bytes": Metric("gauge", (), "space that stays free: with less, instances are refused"),
    "dicomtwist_disk_answers": Metric("gauge", (), "1 if the file system has answered within two seconds, else 0"),
    "dicomtwist_worklist_files": Metric("gauge", (), "files of the worklist that are in memory"),
    "dicomtwist_journal_dropped_total": Metric(
        "counter", ("journal",), "records and audit messages that were dropped, because too many waited to be written"
    ),
    "dicomtwist_audit_waiting_bytes": Metric("gauge", (), "audit messages on the disk that are not delivered"),
    "dicomtwist_ready": Metric("gauge", (), "1 if /health/ready of the process answers 200, else 0"),
}
