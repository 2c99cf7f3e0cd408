"""
A bound on what the operations of all peers take together, of which one host never has all.
"""

from __future__ import annotations

from collections import Counter

from dicomtwist.runtime.networks import host_of

__all__ = ["Budget", "Share"]


class Budget:
    """
    An amount, such as bytes of memory, that operations take parts of.

    :ivar taken: the amount that is taken.
    """

    __slots__ = ("_of_hosts", "taken")

    def __init__(self) -> None:
        self.taken = 0
        self._of_hosts: Counter[str] = Counter()

    def take(self, host: str, amount: int, limit: int) -> bool:
        """
        Take *amount* for an operation of *host*.

        :param limit: the most that may be taken. One host may take half of it.
        :returns: whether it was taken.
        """
        if self.taken + amount > limit or self._of_hosts[host] + amount > limit // 2:
            return False
        self.taken += amount
        self._of_hosts[host] += amount
        return True

    def give_back(self, host: str, amount: int) -> None:
        """Give back *amount*, which was taken for *host*."""
        self.taken -= amount
        self._of_hosts[host] -= amount
        if not self._of_hosts[host]:
            del self._of_hosts[host]


class Share:
    """
    The part of a :class:`Budget` that one operation takes. It is given back at the latest when nothing refers to the share.

    :param address: the address of the peer that the operation is for.
    :param limit: the most that the budget may have taken.
    """

    __slots__ = ("_address", "_budget", "_host", "_taken", "limit")

    def __init__(self, budget: Budget, address: str, limit: int) -> None:
        self._budget = budget
        self._address = address
        self._host = ""
        self.limit = limit
        self._taken = 0

    def grow(self, amount: int) -> bool:
        """Take *amount* more, and return whether that is possible."""
        if not self._host:
            self._host = host_of(self._address)  # only now, since most operations take nothing
        if not self._budget.take(self._host, amount, self.limit):
            return False
        self._taken += amount
        return True

    def release(self) -> None:
        """Give everything back."""
        if self._taken:
            taken, self._taken = self._taken, 0
            self._budget.give_back(self._host, taken)

    __del__ = release
