"""
DICOM Message Service Elements (PS3.7), without any I/O: command sets, messages, the message stream, status codes.
"""
