"""
Measurements beside DCMTK and pynetdicom, on one machine, in one run.

Run them all with ``make bench``, or some of them with::

    python -m benchmarks                            # everything, medians of five
    python -m benchmarks echo store-small           # these; --list names them
    python -m benchmarks --quick                    # a small part of everything, once: does it work at all?
    python -m benchmarks --write docs/benchmarks.md # the table as Markdown, with machine and versions

How to read the table: *ours* and *peer* are seconds, the median of the rounds and in brackets the fastest and the slowest;
wide brackets say that the machine was busy and that the row means little. *Ratio* is the peer's time divided by ours, so
that more than 1 says that we are faster. *Needed* is the least ratio that is good enough; the verdict is then OK or SHORT.
Rows without are there to know, not to pass. Of memory the row says by how much the process grew, and the most that it may.

How it is measured:

* The rounds of both sides are interleaved (ours, peer, ours, peer, ...) after one round each that does not count.
* Each run of a server that stores has a process and a folder of its own. Nothing is deleted before the end, since deleting
  thousands of files slows later runs down on ext4. What was written is on the disk before the next run begins.
* Each server gets one instance, or one C-ECHO, before the time is taken. Afterwards its files are counted.
* Both sides run with ``TCP_NODELAY=1`` in their environment, since Debian's DCMTK otherwise leaves Nagle's algorithm on and
  waits 40 ms for an acknowledgement now and then; the rows called *stock* run without, as users do.
* Receiving: the time of a whole process of DCMTK's client, the same one against either server.
* Sending: for DCMTK's client the time of the process, without that of one that sends a single instance; for ours and
  pynetdicom's, which need longer to start, from the association request to the release.
"""
