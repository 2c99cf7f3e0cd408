"""
Matching of person names (PS3.4 C.2.2.2.1, PS3.5 6.2.1): by component group, without regard to case, and by sound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, or_, true

from dicomtwist.archive.index.normal_forms import any_of, has_wildcard, like_pattern, name_groups, sounds

#: The maximum number of components in a group of a person name (PS3.5 6.2.1.1).
_COMPONENTS: Final = 5


def _alternatives(group: str) -> list[str]:
    """Return the forms of a group: ``doe^*`` also matches ``doe``, since empty components at the end are not written."""
    forms = [group]
    while group.endswith("^*") and len(forms) < _COMPONENTS:
        group = group[:-2].rstrip("^")
        forms.append(group)
    return [form for form in forms if form] or [group]


def criterion(
    value: str, groups: Sequence[ColumnElement[Any]], sound: ColumnElement[Any] | None
) -> ColumnElement[bool]:
    """
    Return the criterion of a key for a name whose component groups each have a column in normal form.

    A key with one group is compared with every column. The groups of a key with several (separated by ``=``) are each
    compared with their own column.

    :param groups: the columns of the alphabetic, ideographic and phonetic group.
    :param sound: the column with the sounds of the words, for fuzzy matching.
    """
    wanted = name_groups(value)
    exact: ColumnElement[bool]
    if "=" in value:
        exact = and_(true(), *(_like(column, group) for column, group in zip(groups, wanted, strict=True) if group))
    else:
        exact = or_(*(_like(column, wanted[0]) for column in groups))
    codes = _codes(value) if sound is not None else []
    if not codes or sound is None:
        return exact
    return or_(exact, and_(*(sound.like(like_pattern(f"* {code} *"), escape="\\") for code in codes)))


def _like(column: ColumnElement[Any], group: str) -> ColumnElement[bool]:
    return or_(
        *(
            column.like(like_pattern(form), escape="\\") if has_wildcard(form) else column == form
            for form in _alternatives(group)
        )
    )


def coarse(value: str, column: ColumnElement[Any]) -> ColumnElement[bool]:
    """
    Return a criterion for a column that holds complete names in normal form.

    It finds at least all names that :func:`predicate` accepts.
    """
    groups = [_alternatives(group)[-1] for group in name_groups(value) if group]
    return and_(true(), *(column.like(like_pattern(f"*{group}*"), escape="\\") for group in groups))


def _codes(value: str) -> list[str]:
    """Return the sounds of the words without wildcards."""
    words = value.replace("^", " ").replace("=", " ").split()
    return sounds(" ".join(word for word in words if not has_wildcard(word))).split()


#: Whether a name matches, by its component groups.
_GroupsTest = Callable[[Sequence[str]], bool]


def predicate(values: Sequence[str], *, fuzzy: bool) -> Callable[[str], bool]:
    """Return a function that tests whether any of the names in a text, separated by ``\\``, matches one of *values*."""
    # Keys of one group match any group of a name: all of them are compared at once.
    forms = [form for value in values if "=" not in value for form in _alternatives(name_groups(value)[0])]
    matches = any_of(form for form in forms if form)
    tests = [_by_group(value) for value in values if "=" in value]
    codes = [found for value in values if (found := set(_codes(value)))] if fuzzy else []

    def test(name: str) -> bool:
        groups = name_groups(name)
        if any(group and matches(group) for group in groups) or any(one(groups) for one in tests):
            return True
        if not codes:
            return False
        sound = set(sounds(name).split())
        return any(code <= sound for code in codes)

    return lambda text: any(test(name) for name in text.split("\\"))


def _by_group(value: str) -> _GroupsTest:
    tests = [any_of(_alternatives(group)) if group else None for group in name_groups(value)]
    return lambda groups: all(test(group) for test, group in zip(tests, groups, strict=True) if test)
