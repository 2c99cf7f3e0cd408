"""The Application Entity, its servers, and their vital signs."""

from dicomtwist.ae.ae import AE, BindAddress
from dicomtwist.ae.monitor import ReactorLag, Vitals, resident_memory
from dicomtwist.ae.server import Server

__all__ = ["AE", "BindAddress", "ReactorLag", "resident_memory", "Server", "Vitals"]
