"""Devices, streams and events under CuPy's names."""

from __future__ import annotations

import threading
from typing import Any

from tests.gpu.harness import wheel
from tests.gpu.harness.blocks import Block, aligned
from tests.gpu.harness.streams import Machine, Operation, Queue, machine, place

UNIT = 512
"""Device memory is handed out in multiples of this."""
MAX_SHARED_BYTES = 232448
"""What one block may have of an H100's shared memory when the kernel asks for it."""
FIRST_ADDRESS = 0x7A0000000000
NO_DEVICE = 100
INSUFFICIENT_DRIVER = 35
INVALID_DEVICE = 101


def cuda_error(status: int) -> Exception:
    """CuPy's own exception for a status of the CUDA runtime."""
    return wheel.error("cuda.runtime.CUDARuntimeError")(status)


class Devices:
    """The devices of a machine and their memory.

    Parameters
    ----------
    owner : Machine
        Whose streams use the memory.
    count : int
        Number of devices.
    memory_bytes : int
        Memory of each.
    driver_version : int
        As the driver gives it, 13000 for 13.0; 0 without a driver.
    """

    def __init__(self, owner: Machine, count: int, memory_bytes: int, driver_version: int) -> None:
        self.machine = owner
        self.count = count
        self.memory_bytes = memory_bytes
        self.driver_version = driver_version
        self.used = [0] * count
        self.pinned: list[Block] = []
        self.allocator: Any = None
        self.local = threading.local()
        self._address = FIRST_ADDRESS

    def available(self) -> int:
        """The number of devices; an error, as CUDA's own, when there is none."""
        if self.driver_version == 0:
            raise cuda_error(INSUFFICIENT_DRIVER)
        if self.count == 0:
            raise cuda_error(NO_DEVICE)
        return self.count

    def known(self, device: int) -> int:
        """The number of a device that is there."""
        if not 0 <= device < self.available():
            raise cuda_error(INVALID_DEVICE)
        return device

    @property
    def current(self) -> int:
        """The calling thread's device."""
        self.available()
        return int(getattr(self.local, "device", 0))

    @current.setter
    def current(self, device: int) -> None:
        self.local.device = self.known(device)

    def streams(self) -> dict[int, Stream]:
        """The calling thread's current stream on each device; missing for the null stream."""
        found: dict[int, Stream] = self.local.__dict__.setdefault("streams", {})
        return found

    def queue(self, stream: Any = None) -> Queue:
        """The queue that work given to ``stream`` (None: the current one) goes to."""
        if stream is None:
            stream = get_current_stream()
        if not isinstance(stream, Stream):
            raise TypeError(f"a cupy.cuda.Stream is wanted, not {type(stream).__name__}")
        if stream._queue is None:
            raise self.machine.violation(f"work on the null stream at {place()}")
        if stream._queue not in self.machine.queues:
            raise self.machine.violation(f"{place()} uses a stream of an earlier installation")
        if stream._queue.device != self.current:
            raise self.machine.violation(
                f"{place()}: {stream._queue} belongs to device {stream._queue.device}, and device "
                f"{self.current} is current"
            )
        return stream._queue

    def take(self, nbytes: int) -> Block:
        """Poisoned memory of the current device.

        Raises
        ------
        cupy.cuda.memory.OutOfMemoryError
            When the device has not that much left.
        """
        device, rounded = self.current, -(-nbytes // UNIT) * UNIT
        self.machine.tidy()
        if self.used[device] + rounded > self.memory_bytes:
            raise wheel.error("cuda.memory.OutOfMemoryError")(rounded, self.used[device])
        self.used[device] += rounded
        counts = self.machine.counts
        counts.allocations += 1
        counts.allocated_bytes += rounded
        stream = get_current_stream()._queue
        block = Block(
            f"the {nbytes} bytes allocated at {place()}",
            self._address,
            aligned(nbytes, UNIT),
            device,
            None if stream is None else stream.number,
        )
        # A gap between allocations: what runs past the end of one is in none.
        self._address += rounded + 4 * UNIT
        block.poison()
        return block

    def give_back(self, block: Block, *, raw: bool) -> None:
        """Take memory back once nothing refers to it.

        Raises
        ------
        DisciplineError
            When a stream may still use it while the allocating stream's next allocation is
            given it, or when its release waits for the device (``raw``).
        """
        if block.device is None:
            self.pinned.remove(block)
        else:
            self.used[block.device] -= -(-block.nbytes // UNIT) * UNIT
        if self.machine.failed:
            return
        queues = self.machine.queues
        home = None if block.home is None or raw else queues[block.home - 1]
        users = [str(queues[n - 1]) for n in self.machine.unordered(block, home)]
        if raw and users and not self.machine.allowed:
            self.machine.counts.hidden_syncs += 1
            raise self.machine.violation(f"freeing {block.name} synchronises with the device")
        if users and not raw:
            raise self.machine.violation(
                f"{block.name}: freed while {', '.join(users)} may still use it"
            )

    def pin(self, nbytes: int) -> Block:
        """Poisoned pinned memory."""
        self.available()
        # As CuPy's pool: the next power of two of at least one unit.
        rounded = 1 << (max(nbytes, UNIT) - 1).bit_length()
        self.machine.counts.pinned_allocations += 1
        storage = aligned(rounded, 4096)
        name = f"the {nbytes} pinned bytes allocated at {place()}"
        block = Block(name, storage.ctypes.data, storage, None, None)
        block.poison()
        self.pinned.append(block)
        return block

    def pinned_at(self, address: int, nbytes: int) -> Block:
        """The pinned block that holds host memory.

        Raises
        ------
        DisciplineError
            When it is pageable, freed, or runs past the end.
        """
        for block in self.pinned:
            if block.contains(address, nbytes):
                return block
        raise self.machine.violation(
            f"{place()} copies {nbytes} bytes from or to host memory that is not pinned"
        )


class Device:
    """See `cupy.cuda.Device`."""

    def __init__(self, device: int | None = None) -> None:
        devices = machine().devices
        self.id = devices.current if device is None else int(device)
        self._before: list[int] = []

    def __int__(self) -> int:
        return self.id

    def __enter__(self) -> Device:
        devices = machine().devices
        self._before.append(devices.current)
        devices.current = self.id
        return self

    def __exit__(self, *_: object) -> None:
        machine().devices.current = self._before.pop()

    def use(self) -> None:
        """Make the device current for this thread."""
        machine().devices.current = self.id

    def synchronize(self) -> None:
        """Wait for all streams: hidden, as the program should know what it waits for."""
        owner = machine()
        with owner.call():
            owner.hidden_sync("Device.synchronize")

    @property
    def mem_info(self) -> tuple[int, int]:
        """Free and total bytes."""
        with machine().call():
            devices = machine().devices
            return devices.memory_bytes - devices.used[devices.known(self.id)], devices.memory_bytes

    @property
    def attributes(self) -> dict[str, int]:
        """Some of the attributes of an H100."""
        machine().devices.known(self.id)
        return {
            "AsyncEngineCount": 3,
            "MaxGridDimX": 2**31 - 1,
            "MaxGridDimY": 65535,
            "MaxGridDimZ": 65535,
            "MaxSharedMemoryPerBlock": 49152,
            "MaxSharedMemoryPerBlockOptin": MAX_SHARED_BYTES,
            "MaxSharedMemoryPerMultiprocessor": 233472,
            "MaxThreadsPerBlock": 1024,
            "MultiProcessorCount": 132,
            "WarpSize": 32,
        }

    @property
    def compute_capability(self) -> str:
        """That of an H100."""
        machine().devices.known(self.id)
        return "90"


class Stream:
    """See `cupy.cuda.Stream`; a stream that the null stream holds up is refused."""

    null: Stream

    def __init__(self, *, non_blocking: bool = False) -> None:
        owner = machine()
        self._before: list[Stream | None] = []
        with owner.call():
            if not non_blocking:
                raise owner.violation(f"{place()} makes a stream that waits for the null stream")
            self._queue: Queue | None = owner.queue(owner.devices.current)

    def __enter__(self) -> Stream:
        device = machine().devices.queue(self).device
        streams = machine().devices.streams()
        self._before.append(streams.get(device))
        streams[device] = self
        return self

    def __exit__(self, *_: object) -> None:
        streams, before = machine().devices.streams(), self._before.pop()
        device = -1 if self._queue is None else self._queue.device
        if before is None:
            del streams[device]
        else:
            streams[device] = before

    def record(self, event: Event | None = None) -> Event:
        """Record an event, a new one by default."""
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """Let what is issued from now on wait for an event's latest record."""
        owner = machine()
        with owner.call():
            queue = owner.devices.queue(self)
            if owner.visit("wait_event") and event._latest is not None:
                owner.issue(queue, "wait", after=(event._latest,))

    def synchronize(self) -> None:
        """Hold the host until the stream is empty."""
        owner = machine()
        with owner.call():
            queue = owner.devices.queue(self)
            if owner.visit("synchronize"):
                owner.counts.explicit_syncs += 1
                owner.wait_for(owner.issue(queue, "synchronisation"))


class Event:
    """See `cupy.cuda.Event`."""

    def __init__(self, *, block: bool = False, disable_timing: bool = False) -> None:
        self._options = block, disable_timing
        self._latest: Operation | None = None
        with machine().call():
            machine().devices.available()

    def record(self, stream: Stream | None = None) -> None:
        """Mark the end of what a stream was given so far."""
        owner = machine()
        with owner.call():
            queue = owner.devices.queue(stream)
            if owner.visit("record"):
                self._latest = owner.issue(queue, "record")

    def synchronize(self) -> None:
        """Hold the host until the latest record is reached."""
        owner = machine()
        with owner.call():
            if owner.visit("synchronize"):
                owner.counts.explicit_syncs += 1
                if self._latest is not None:
                    owner.wait_for(self._latest)

    @property
    def done(self) -> bool:
        """Whether the latest record is reached."""
        owner = machine()
        with owner.call():
            return self._latest is None or owner.poll(self._latest)


def _null() -> Stream:
    stream = object.__new__(Stream)
    stream._queue, stream._before = None, []
    return stream


Stream.null = _null()


def get_current_stream(device_id: int = -1) -> Stream:
    """The calling thread's stream; the null stream unless another was entered."""
    devices = machine().devices
    device = devices.current if device_id == -1 else devices.known(device_id)
    return devices.streams().get(device, Stream.null)


def get_device_count() -> int:
    """See `cupy.cuda.runtime.getDeviceCount`."""
    with machine().call():
        return machine().devices.available()


def get_device_properties(device: int) -> dict[str, Any]:
    """Some of the properties of an H100."""
    devices = machine().devices
    devices.known(device)
    return {
        "name": b"NVIDIA H100 80GB HBM3 (a double)",
        "totalGlobalMem": devices.memory_bytes,
        "major": 9,
        "minor": 0,
        "multiProcessorCount": 132,
        "sharedMemPerBlock": 49152,
        "sharedMemPerBlockOptin": MAX_SHARED_BYTES,
        "warpSize": 32,
        "maxThreadsPerBlock": 1024,
        "pciBusID": 1 + device,
    }


def driver_get_version() -> int:
    """See `cupy.cuda.runtime.driverGetVersion`."""
    return machine().devices.driver_version


def runtime_get_version() -> int:
    """See `cupy.cuda.runtime.runtimeGetVersion`."""
    return 13000


def mem_get_info() -> tuple[int, int]:
    """See `cupy.cuda.runtime.memGetInfo`."""
    return Device().mem_info
