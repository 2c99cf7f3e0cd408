"""Operations that are performed for a peer: one function for each DIMSE service."""

from dicomtwist.errors import Refused
from dicomtwist.scp.performed import Performance
from dicomtwist.scp.services import SERVICES

__all__ = ["Performance", "Refused", "SERVICES"]
