"""
The DICOM Upper Layer protocol for TCP/IP (PS3.8), without any I/O.

Nothing here imports Twisted or pydicom, reads a clock or touches a socket: bytes go in, events and bytes come out.
"""
