"""
Measurements beside DCMTK, Orthanc and pynetdicom, on one machine, in one run.

Run them all with ``make bench``, or some of them with::

    python -m benchmarks                            # everything, medians of five
    python -m benchmarks echo store-small           # these; --list names them
    python -m benchmarks --quick                    # a small part of everything, once: does it work at all?
    python -m benchmarks --write docs/benchmarks.md # puts the rows into docs/benchmarks.json, and the page is made of that

``make bench`` does the last. :mod:`benchmarks.load`, :mod:`benchmarks.soak` and :mod:`benchmarks.profile` are commands of their
own. How to read the table is told on that page, whose words are in :mod:`benchmarks.report`.

How it is measured:

* The rounds of both sides are interleaved (ours, peer, ours, peer, ...) after one round each that does not count.
* Each run of a server that stores has a process and a folder of its own. Nothing but single large files is deleted before
  the end, since deleting thousands of files slows the next minute down on ext4; for the same reason each benchmark waits
  until files are made quickly, whoever deleted some. What was written is on the disk before the next run begins.
* Each server gets one instance, or one C-ECHO, before the time is taken. Afterwards its files are counted.
* Both sides run with ``TCP_NODELAY=1`` in their environment, since Debian's DCMTK otherwise leaves Nagle's algorithm on and
  waits 40 ms for an acknowledgement now and then; the rows called *stock* run without, as users do.
* Receiving: the time of a whole process of DCMTK's client, the same one against either server.
* Sending: for DCMTK's client the time of the process, without that of one that sends a single instance; for ours and
  pynetdicom's, which need longer to start, from the association request to the release.
"""
