"""
Cuts the byte stream of a connection into PDUs and fragments of presentation data values (PS3.8 9.3).

Control PDUs are small and are returned whole. A P-DATA-TF is never joined: each fragment of a PDV is passed on as soon as
a read delivers it, as a memoryview of that read's bytes. Every length is checked before anything is buffered for it.
"""

from __future__ import annotations

from typing import Final

from dicomtwist.errors import InvalidPDU
from dicomtwist.ul.pdu import PDATA_HEADER, PDU_HEADER, PDV_HEADER

#: The longest A-ASSOCIATE-RQ or -AC accepted, in bytes. 128 contexts with 40 transfer syntaxes each need 200 kB, two
#: user identity fields 128 kB.
MAX_ASSOCIATE_LENGTH: Final = 512 * 1024

#: The longest body of each control PDU, by type.
MAX_CONTROL_LENGTH: Final = {
    1: MAX_ASSOCIATE_LENGTH,
    2: MAX_ASSOCIATE_LENGTH,
    3: 4,
    5: 4,
    6: 4,
    7: 4,
}

#: The longest P-DATA-TF that this side announces by default, in bytes without the header (PS3.8 D.1).
DEFAULT_MAX_LENGTH: Final = 131072


class Fragment:
    """
    The part of a presentation data value that one read delivered.

    :ivar context_id: the presentation context ID.
    :ivar control: the message control header: bit 0 command, bit 1 last (PS3.8 E.2).
    :ivar data: the bytes, a view of the read's buffer; may be empty if *ends* is set.
    :ivar ends: whether the PDV ends with this fragment.
    """

    __slots__ = ("context_id", "control", "data", "ends")

    def __init__(self, context_id: int, control: int, data: memoryview, ends: bool) -> None:
        self.context_id = context_id
        self.control = control
        self.data = data
        self.ends = ends

    def __repr__(self) -> str:
        return f"Fragment({self.context_id}, {self.control}, {len(self.data)} bytes, ends={self.ends})"


class ControlPDU:
    """A PDU other than P-DATA-TF: its type and the bytes after its header."""

    __slots__ = ("body", "pdu_type")

    def __init__(self, pdu_type: int, body: memoryview) -> None:
        self.pdu_type = pdu_type
        self.body = body

    def __repr__(self) -> str:
        return f"ControlPDU({self.pdu_type}, {len(self.body)} bytes)"


Frame = Fragment | ControlPDU | InvalidPDU


class Framer:
    """
    Cuts a byte stream into frames.

    :param max_length: the longest P-DATA-TF accepted, in bytes without the header, 0 for no limit. No limit costs no
        memory, since P-DATA-TF is not buffered.
    :ivar begun: the number of PDUs of which at least one byte was received.
    :ivar mid_pdu: whether the bytes so far end inside a PDU. False after an invalid PDU, since then no more bytes are expected.
    """

    __slots__ = (
        "_body_left",
        "_broken",
        "_context_id",
        "_control",
        "_partial",
        "_pdu_left",
        "_pdu_type",
        "_pdv_left",
        "begun",
        "max_length",
        "mid_pdu",
    )

    def __init__(self, max_length: int = DEFAULT_MAX_LENGTH) -> None:
        self.max_length = max_length
        self._partial = bytearray()  # an incomplete header, or an incomplete control PDU
        self._body_left = 0  # bytes of a control PDU still to be received
        self._pdu_type = 0
        self._pdu_left = 0  # bytes of the current P-DATA-TF after the current PDV
        self._pdv_left = 0  # bytes of the current PDV still to be received
        self._context_id = 0
        self._control = 0
        self._broken = False
        self.begun = 0
        self.mid_pdu = False

    @property
    def mid_control(self) -> bool:
        """Whether the bytes so far end inside a PDU other than P-DATA-TF, or inside its header."""
        if self._broken:
            return False
        in_header = bool(self._partial) and not self._pdu_left and self._partial[0] != 4
        return bool(self._body_left) or in_header

    def feed(self, data: bytes) -> list[Frame]:
        """
        Process the bytes of one read and return the frames in them.

        An :class:`InvalidPDU` is the last frame of its list. All bytes after it are dropped, since nothing in a broken
        stream shows where the next PDU begins.
        """
        frames: list[Frame] = []
        if self._broken:
            return frames
        if self._body_left:
            data = self._feed_body(data, frames)
        elif self._partial:
            # At most 5 bytes, of a header that was split between two reads.
            data = bytes(self._partial) + data
            self._partial.clear()
            if not self._pdu_left:
                self.begun -= 1  # it is counted again below
        if not self._pdv_left and not self._pdu_left:
            position = self._scan_whole(data, frames)
            if position == len(data):
                self.mid_pdu = bool(self._body_left)
                return frames
        else:
            position = 0
        try:
            self._scan(data, position, frames)
        except InvalidPDU as error:
            self._broken = True
            frames.append(error)
        self.mid_pdu = not self._broken and bool(self._partial or self._body_left or self._pdu_left or self._pdv_left)
        return frames

    def _feed_body(self, data: bytes, frames: list[Frame]) -> bytes:
        taken = min(self._body_left, len(data))
        self._partial += data[:taken]
        self._body_left -= taken
        if not self._body_left:
            frames.append(ControlPDU(self._pdu_type, memoryview(bytes(self._partial))))
            self._partial.clear()
        return data[taken:]

    def _scan(self, data: bytes, position: int, frames: list[Frame]) -> None:
        view = memoryview(data)
        end = len(data)
        pdv_left, pdu_left = self._pdv_left, self._pdu_left
        context_id, control = self._context_id, self._control
        while position < end:
            left = end - position
            if pdv_left:
                taken = pdv_left if pdv_left < left else left
                pdv_left -= taken
                stop = position + taken
                frames.append(Fragment(context_id, control, view[position:stop], not pdv_left))
                position = stop
            elif left < 6:
                self._partial += data[position:]
                if not pdu_left:
                    self.begun += 1
                break
            elif pdu_left:
                length, context_id, control = PDV_HEADER.unpack_from(data, position)
                position += 6
                pdu_left -= 4 + length
                # PS3.8 Annex E requires an even length. An odd one is accepted: its meaning is clear, and peers such as
                # pynetdicom have no other way if an odd maximum was announced to them.
                if length < 2 or pdu_left < 0:
                    raise InvalidPDU(
                        f"a PDV of length {length} in a P-DATA-TF with {pdu_left + length} bytes left for it"
                    )
                if 0 < pdu_left < 6:
                    raise InvalidPDU(f"{pdu_left} bytes after the last PDV of a P-DATA-TF")
                pdv_left = length - 2
                if not pdv_left:
                    if not control & 2:
                        # One is harmless, but an endless series would keep this side busy and count as progress.
                        raise InvalidPDU("an empty PDV that is not the last of its message")
                    frames.append(Fragment(context_id, control, view[:0], True))
            else:
                pdu_type, length = PDU_HEADER.unpack_from(data, position)
                position += 6
                self.begun += 1
                if pdu_type == 4:
                    if length < 6 or (self.max_length and length > self.max_length):
                        raise InvalidPDU(
                            f"a P-DATA-TF of {length} bytes; the length must be 6 to {self.max_length or 'any number'}"
                        )
                    pdu_left = length
                else:
                    position = self._control_pdu(pdu_type, length, view, position, frames)
        self._pdv_left, self._pdu_left = pdv_left, pdu_left
        self._context_id, self._control = context_id, control

    def _scan_whole(self, data: bytes, frames: list[Frame]) -> int:
        """
        Append the fragments of P-DATA-TF PDUs that hold one PDV each and are complete, as long as one follows the other.

        Small messages consist of these alone; each one takes one step here, and three in :meth:`_scan`.

        :returns: the position behind the last one.
        """
        position, end, view = 0, len(data), memoryview(data)
        most = self.max_length or end
        unpack = PDATA_HEADER.unpack_from
        while end - position > 12:
            pdu_type, length, pdv_length, context_id, control = unpack(data, position)
            stop = position + 6 + length
            if pdu_type != 4 or stop > end or pdv_length + 4 != length or pdv_length <= 2 or length > most:
                break
            frames.append(Fragment(context_id, control, view[position + 12 : stop], True))
            position = stop
            self.begun += 1
        return position

    def _control_pdu(self, pdu_type: int, length: int, view: memoryview, position: int, frames: list[Frame]) -> int:
        limit = MAX_CONTROL_LENGTH.get(pdu_type)
        if limit is None:
            raise InvalidPDU(f"PDU type {pdu_type:#04x} is unknown", 1)
        if length > limit:
            raise InvalidPDU(f"a PDU of type {pdu_type} and {length} bytes, the maximum is {limit}")
        stop = position + length
        if stop <= len(view):
            frames.append(ControlPDU(pdu_type, view[position:stop]))
            return stop
        self._pdu_type = pdu_type
        self._partial += view[position:]
        self._body_left = stop - len(view)
        return len(view)
