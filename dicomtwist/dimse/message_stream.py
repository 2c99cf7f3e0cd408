"""
Converts PDV fragments to messages and back (PS3.8 Annex E, PS3.7 6.3).

Receiving: :class:`MessageReceiver` joins command sets, which are small and bounded, and passes on the fragments of data
sets one by one. Sending: :func:`encode_pdata` cuts a command set, or a part of a data set, into P-DATA-TF PDUs.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final, Protocol

from dicomtwist.dimse.command import MAX_COMMAND_LENGTH
from dicomtwist.dimse.messages import Message
from dicomtwist.dimse.recurring import decode_recurring
from dicomtwist.errors import InvalidMessage
from dicomtwist.ul.framing import Fragment
from dicomtwist.ul.pdu import PDATA_HEADER

#: The longest P-DATA-TF that is sent, in bytes, even if the peer accepts longer ones: an A-ABORT has to wait for the PDU
#: that is being written, and longer PDUs are not faster.
MAX_SEND_LENGTH: Final = 131072


#: Stands for the presentation context ID between messages. It is not a byte, since a peer can send any byte, even 0.
_NO_CONTEXT: Final = -1


class MessageUser(Protocol):
    """The receiver of the messages of a :class:`MessageReceiver`."""

    def message_received(self, context_id: int, message: Message) -> None:
        """Called with a command set; if ``message.has_dataset``, its data set follows."""

    def dataset_fragment_received(self, data: memoryview) -> None:
        """Called with each fragment of the data set, in order."""

    def dataset_received(self) -> None:
        """Called when the data set is complete."""


class MessageReceiver:
    """
    Joins fragments into messages for *user*.

    :param user: receives the messages.
    :param contexts: the accepted presentation context IDs.
    :param max_dataset_length: the longest data set accepted, in bytes; ``None`` for no limit.
    """

    __slots__ = ("_command", "_context_id", "_in_dataset", "_length", "_user", "contexts", "max_dataset_length")

    def __init__(self, user: MessageUser, contexts: Container[int], max_dataset_length: int | None = None) -> None:
        self._user = user
        self.contexts = contexts
        self.max_dataset_length = max_dataset_length
        self._command = bytearray()
        self._context_id = _NO_CONTEXT  # of the current message
        self._in_dataset = False
        self._length = 0

    @property
    def mid_message(self) -> bool:
        """Whether a message has begun and is not complete."""
        return self._context_id != _NO_CONTEXT

    def receive(self, fragment: Fragment) -> None:
        """
        Process the next fragment of the association.

        :raises InvalidMessage: the fragment breaks the rules; the association cannot continue.
        """
        context_id = fragment.context_id
        if context_id != self._context_id:
            if self._context_id != _NO_CONTEXT:
                raise InvalidMessage(
                    f"presentation context ID {context_id} inside a message on context {self._context_id}"
                )
            if context_id not in self.contexts:
                raise InvalidMessage(f"presentation context ID {context_id} was not accepted")
            self._context_id = context_id
        control = fragment.control
        if control & 1:
            if self._in_dataset:
                raise InvalidMessage("a command fragment inside a data set")
            self._receive_command(fragment)
        elif self._in_dataset:
            self._receive_dataset(fragment)
        else:
            raise InvalidMessage("a data set fragment without a command set before it")

    def _receive_command(self, fragment: Fragment) -> None:
        last = fragment.ends and fragment.control & 2
        command: bytes | bytearray
        if last and not self._command:
            command = bytes(fragment.data)
        else:
            # Copied, so that many tiny fragments do not each keep alive the whole read that they came in.
            command = self._command
            command += fragment.data
        if len(command) > MAX_COMMAND_LENGTH:
            raise InvalidMessage(f"a command set of more than {MAX_COMMAND_LENGTH} bytes")
        if not last:
            return
        message = decode_recurring(bytes(command))
        if self._command:
            self._command.clear()
        context_id = self._context_id
        if message.has_dataset:
            self._in_dataset = True
            self._length = 0
        else:
            self._context_id = _NO_CONTEXT
        self._user.message_received(context_id, message)

    def _receive_dataset(self, fragment: Fragment) -> None:
        data = fragment.data
        if data:
            self._length += len(data)
            if self.max_dataset_length is not None and self._length > self.max_dataset_length:
                raise InvalidMessage(f"a data set of more than {self.max_dataset_length} bytes")
            self._user.dataset_fragment_received(data)
        if fragment.ends and fragment.control & 2:
            self._in_dataset = False
            self._context_id = _NO_CONTEXT
            self._user.dataset_received()


def payload_length(peer_max_length: int) -> int:
    """
    Return the number of bytes of a message in one P-DATA-TF to a peer whose maximum is *peer_max_length*, 0 for none.

    The result is even, since a fragment has an even length, and at least 2 even if the peer's maximum is too small for
    that.
    """
    length = min(peer_max_length or MAX_SEND_LENGTH, MAX_SEND_LENGTH)
    return max(2, (length - 6) & ~1)


def encode_command_pdata(context_id: int, command: bytes, payload: int) -> list[bytes | memoryview]:
    """
    Cut a command set into P-DATA-TF PDUs, as :func:`encode_pdata` does.

    Nearly every command set fits into one. It is copied into one buffer with its header, which is written faster than two.
    """
    length = len(command)
    if length > payload:
        return encode_pdata(context_id, True, command, payload)
    return [PDATA_HEADER.pack(4, length + 6, length + 2, context_id, 3) + command]


def encode_pdata(
    context_id: int, command: bool, data: bytes | memoryview, payload: int, last: bool = True
) -> list[bytes | memoryview]:
    """
    Cut *data* into P-DATA-TF PDUs of one PDV each.

    :param context_id: the presentation context ID.
    :param command: whether *data* belongs to a command set.
    :param data: the bytes; empty only if *last* is set.
    :param payload: the maximum number of bytes of *data* in one PDU, from :func:`payload_length`.
    :param last: whether the command set or data set ends with *data*.
    :returns: buffers to be joined, or to be written in order.
    """
    length = len(data)
    control = 1 if command else 0
    final = control | 2 if last else control
    if length <= payload:
        return [PDATA_HEADER.pack(4, length + 6, length + 2, context_id, final), data]
    view = memoryview(data)
    header = PDATA_HEADER.pack(4, payload + 6, payload + 2, context_id, control)
    buffers: list[bytes | memoryview] = []
    position = 0
    while length - position > payload:
        buffers.append(header)
        buffers.append(view[position : position + payload])
        position += payload
    rest = length - position
    buffers.append(PDATA_HEADER.pack(4, rest + 6, rest + 2, context_id, final))
    buffers.append(view[position:])
    return buffers
