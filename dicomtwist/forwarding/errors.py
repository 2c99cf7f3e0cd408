"""
The errors of forwarding. Their texts name tables, keys, tags and rules, and never a value of a patient.
"""

from __future__ import annotations

from dicomtwist.errors import DataSetError

__all__ = ["CoercionError", "ForwardingRuleError"]


class ForwardingRuleError(ValueError):
    """
    A table of the configuration of forwarding is wrong.

    :ivar table: the table, such as ``"forward 2"``.
    :ivar key: the key in it, such as ``"set.PatientID"``; empty if the table as a whole is wrong.
    :ivar words: the reason.
    """

    def __init__(self, table: str, key: str, words: str) -> None:
        self.table, self.key, self.words = table, key, words
        super().__init__(f"{table}: {key}: {words}" if key else f"{table}: {words}")


class CoercionError(DataSetError):
    """
    A header cannot be changed as a rule says, so the instance must not be sent.

    :ivar tag: the attribute, as keyword or as ``(gggg,eeee)``; empty if none is to blame.
    :ivar rule: the rule that failed, such as ``"map"`` or ``"deidentify"``.
    :ivar words: the reason.
    """

    def __init__(self, tag: str, rule: str, words: str) -> None:
        self.tag, self.rule, self.words = tag, rule, words
        super().__init__(": ".join(one for one in (rule, tag, words) if one))
