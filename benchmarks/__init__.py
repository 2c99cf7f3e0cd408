"""
Benchmarks of dicomtwist against DCMTK, Orthanc and pynetdicom, on one machine, in one run.

``make bench`` runs all of them. To run some of them::

    python -m benchmarks                            # everything, medians of five
    python -m benchmarks echo 'tls-*'               # only these, by name or pattern; --list names all
    python -m benchmarks --quick                    # a small part of everything, once, to see whether it works
    python -m benchmarks --write docs/benchmarks.md # keep the rows in docs/benchmarks.json, and write the page from it

``make bench`` runs the last command. :mod:`benchmarks.load`, :mod:`benchmarks.soak` and :mod:`benchmarks.profile` are separate
commands. The page says how to read the table; its text is in :mod:`benchmarks.report`.

How the benchmarks measure:

* The rounds of both sides are interleaved (ours, peer, ours, peer, ...), after one round of each that does not
  count.
* Each run of a server that stores has its own process and folder. Nothing is deleted before the end, because deleting thousands
  of files slows down the next minutes on ext4. For the same reason each benchmark first waits until files are created quickly,
  in case another process deleted some. Written data is on the disk before the next run begins. All files need about 20 GB;
  with ``--folder`` they are left in a folder of the caller's, which can be deleted when nothing is measured.
* Each server gets one instance, or one C-ECHO, before the measurement starts. Afterwards its files are counted.
* Both sides run with ``TCP_NODELAY=1`` in their environment, because Debian's DCMTK otherwise leaves Nagle's algorithm on and
  sometimes waits 40 ms for an acknowledgement. The rows called *stock* run without it, as most users do.
* For receiving, the time is that of a whole process of DCMTK's client, the same client against either server.
* Sustained loads, C-GET over TLS and C-GET of many studies have a client of their own (:mod:`benchmarks.clients.wire`), which
  adds little to the server's time: DCMTK's clients do not report the time of a part of their work, and getscu has no TLS.
* The archives with 100,000 and 1,000,000 instances consist of hard links to empty files, and of rows that are copied inside
  the index. A start compares their names, as it does with any archive that was stopped properly.
* For sending with DCMTK's client, the time is that of the process, minus that of a process that sends a single instance. Our
  client and pynetdicom's need longer to start, so their time is taken from the association request to the release.
"""
