"""
Decoding of the command sets of which an association carries thousands: C-ECHO and C-STORE requests.

The requests of one peer differ in the Message ID and the SOP Instance UID alone. So everything in front of the Message ID is
looked up as a whole among the beginnings of earlier requests. This takes half of the time of
:func:`~dicomtwist.dimse.messages.decode_message`, which decodes all other messages.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from dicomtwist.dimse.command import KEYWORDS, number_header
from dicomtwist.dimse.messages import NO_DATASET, CEchoRQ, CStoreRQ, Message, decode_message

#: The most beginnings that are kept of each kind of request; with more the table is emptied.
MAX_BEGINNINGS: Final = 512

_BEFORE_UID: Final = 20  # the group length, and the header of the Affected SOP Class UID
_BEHIND_UID: Final = 18  # Command Field, and the header of the Message ID

_GROUP_LENGTH: Final = Struct("<LL").pack(0, 4)
_UID_HEADER: Final = Struct("<LL")
_UID_TAG: Final = KEYWORDS["affected_sop_class_uid"][0] << 16
_FIELD_AND_HEADER: Final = Struct("<QHQ")

_DATA_SET_TYPE: Final = number_header("command_data_set_type")
_PRIORITY: Final = number_header("priority")
_INSTANCE_TAG: Final = KEYWORDS["affected_sop_instance_uid"][0] << 16
#: The rest of a C-ECHO request behind the Message ID.
_ECHO_REST: Final = Struct("<QH").pack(_DATA_SET_TYPE, NO_DATASET)
#: The rest of a C-STORE request behind the Message ID: priority, data set type, and the header of the SOP Instance UID.
_STORE_REST: Final = Struct("<QHQHLL")
_STORE_REST_LENGTH: Final = _STORE_REST.size

#: The SOP Class UIDs by the beginnings of requests: all bytes in front of the Message ID.
_echoes: dict[bytes, str] = {}
_stores: dict[bytes, str] = {}


def decode_recurring(data: bytes) -> Message:
    """
    Return the message with the command set *data*, the same as :func:`~dicomtwist.dimse.messages.decode_message`.

    :raises InvalidMessage: see there.
    """
    if len(data) < _BEFORE_UID + _BEHIND_UID:
        return decode_message(data)
    stop = data[16] + _BEFORE_UID + _BEHIND_UID
    beginning = data[:stop]
    uid = _stores.get(beginning)
    if uid is not None:
        instance = stop + 2 + _STORE_REST_LENGTH
        value = data[instance:].rstrip(b"\0")
        # A UID that is encoded in another way than PS3.5 9.1 has it is left to decode_message.
        if value.isascii() and value[-1:] not in b" ":
            head1, priority, head2, data_set_type, tag, length = _STORE_REST.unpack_from(data, stop + 2)
            if (
                head1 == _PRIORITY
                and head2 == _DATA_SET_TYPE
                and tag == _INSTANCE_TAG
                and instance + length == len(data)
            ):
                message_id = data[stop] | data[stop + 1] << 8
                return _make_store(uid, message_id, priority, data_set_type != NO_DATASET, value.decode("ascii"))
    else:
        uid = _echoes.get(beginning)
        if uid is not None and data[stop + 2 :] == _ECHO_REST:
            return _make_echo(uid, data[stop] | data[stop + 1] << 8)
    message = decode_message(data)
    if uid is None and not message.tolerated:
        _learn(beginning, message)
    return message


def _make_echo(uid: str, message_id: int) -> CEchoRQ:
    """Return a C-ECHO request, in half of the time that its constructor takes."""
    request = object.__new__(CEchoRQ)
    request.has_dataset = False
    request.tolerated = ()
    request.message_id = message_id
    request.affected_sop_class_uid = uid
    return request


def _make_store(uid: str, message_id: int, priority: int, has_dataset: bool, instance: str) -> CStoreRQ:
    """Return a C-STORE request, as :func:`_make_echo` does."""
    request = object.__new__(CStoreRQ)
    request.has_dataset = has_dataset
    request.tolerated = ()
    request.message_id = message_id
    request.affected_sop_class_uid = uid
    request.affected_sop_instance_uid = instance
    request.priority = priority
    request.move_originator_application_entity_title = None
    request.move_originator_message_id = None
    return request


def _learn(beginning: bytes, message: Message) -> None:
    """Keep the beginning of *message*, if it is a request of the two kinds with its elements in the usual order."""
    if isinstance(message, CStoreRQ):
        known = _stores
    elif isinstance(message, CEchoRQ):
        known = _echoes
    else:
        return
    uid_end = len(beginning) - _BEHIND_UID
    expected = (
        _GROUP_LENGTH
        + beginning[8:12]
        + _UID_HEADER.pack(_UID_TAG, beginning[16])
        + beginning[_BEFORE_UID:uid_end]
        + _FIELD_AND_HEADER.pack(number_header("command_field"), message.COMMAND_FIELD, number_header("message_id"))
    )
    if beginning == expected and beginning[16] and uid_end == _BEFORE_UID + beginning[16]:
        if len(known) >= MAX_BEGINNINGS:
            known.clear()
        known[beginning] = message.affected_sop_class_uid
