"""Associations that are kept and used again."""

from dicomtwist.pool.lease import Lease
from dicomtwist.pool.pool import DEFAULT_RETRY_POLICY, MAX_WAITING, AssociationPool
from dicomtwist.pool.retry import RereadableFile

__all__ = ["AssociationPool", "DEFAULT_RETRY_POLICY", "Lease", "MAX_WAITING", "RereadableFile"]
