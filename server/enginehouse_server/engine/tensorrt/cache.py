"""Keys and values in slots of the device's memory, which a plan updates in place."""

from collections.abc import Mapping, Sequence

from enginehouse_server.engine.cuda import CudaBuffer, CudaDevice, CudaStream

__all__ = ["DeviceSlots"]


class DeviceSlots:
    """Rows of every cached tensor, one memory a tensor, and one row to swap others through.

    What is done to rows is enqueued on the stream on which they are computed.
    """

    def __init__(
        self, device: CudaDevice, stream: CudaStream, row_bytes: Mapping[str, int], num_rows: int
    ) -> None:
        """Allocates and clears.

        Args:
            device: Whose memory.
            stream: Of all that is done.
            row_bytes: Of a row, by name of the tensor.
            num_rows: Without the one to swap through, which a single row does not need.

        Raises:
            DeviceError: There is not as much memory.
        """
        self._device, self._stream, self._row_bytes = device, stream, dict(row_bytes)
        self._spare = num_rows
        self._is_written = [False] * num_rows
        self._memory: dict[str, CudaBuffer] = {}
        for name, size in row_bytes.items():
            self._memory[name] = device.allocate(size * self.rows_with_spare(num_rows))
            memory = self._memory[name]
            device.fill(memory.address, 0, memory.num_bytes, stream)

    @staticmethod
    def rows_with_spare(num_rows: int) -> int:
        """Rows that are allocated for so many."""
        return num_rows + (num_rows > 1)

    def addresses(self, first_row: int) -> dict[str, int]:
        """Where a row is, and what follows it, by name of the tensor."""
        return {
            name: memory.address + first_row * self._row_bytes[name]
            for name, memory in self._memory.items()
        }

    def use(self, row: int, *, begins: bool) -> None:
        """Notes that a row is about to be written; one whose sequence begins is cleared if need be.

        What another left there would be no part of its attention, but nothing times what is no
        number is still no number.
        """
        if begins and self._is_written[row]:
            self.clear([row])
        self._is_written[row] = True

    def copy(self, source: int, target: int) -> None:
        """Copies one row into another."""
        self._move(source, target)
        self._is_written[target] = self._is_written[source]

    def swap(self, one: int, other: int) -> None:
        """Exchanges two rows."""
        self._move(one, self._spare)
        self._move(other, one)
        self._move(self._spare, other)
        written = self._is_written
        written[one], written[other] = written[other], written[one]

    def clear(self, rows: Sequence[int]) -> None:
        """Makes rows zeros again."""
        for row in rows:
            for name, address in self.addresses(row).items():
                self._device.fill(address, 0, self._row_bytes[name], self._stream)
            self._is_written[row] = False

    def free(self) -> None:
        """Gives the memory back; nothing may be computing on it. Twice is once."""
        for memory in self._memory.values():
            memory.free()

    def _move(self, source: int, target: int) -> None:
        sources, targets = self.addresses(source), self.addresses(target)
        for name, size in self._row_bytes.items():
            self._device.copy_on_device(targets[name], sources[name], size, self._stream)
