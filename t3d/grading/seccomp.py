"""The system calls that code under test is denied, as a seccomp program for bubblewrap.

New processes are refused but threads are not: a program that could fork could try every answer in a child
and learn which one the test accepts. Sockets are refused because some families (AF_VSOCK, AF_ALG) ignore
network namespaces. Files in memory are refused because no limit counts what they hold: 64 descriptors times
the largest file; so are System V's shared memory, semaphores and messages, POSIX's message queues and extended
attributes, which the kernel keeps beside what the limits count.
"""

import errno
import functools
import platform
import struct
from dataclasses import dataclass

_LOAD, _JUMP_EQ, _JUMP_GE, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_CLONE_THREAD = 0x00010000
_X32_CALLS = 0x40000000


@dataclass(frozen=True)
class _Calls:
    """An architecture's audit number and system call numbers (uapi/linux/audit.h, asm/unistd.h)."""

    audit: int
    clone: int
    clone3: int
    denied: tuple[int, ...]


# Denied, in this order: ptrace, process_vm_readv, process_vm_writev, unshare, setns, mount, umount2,
# pivot_root, bpf, perf_event_open, io_uring_setup, userfaultfd, keyctl, add_key, request_key, init_module,
# finit_module, kexec_load, pidfd_getfd, socket, memfd_create, memfd_secret; shmget, shmat, semget, msgget, mq_open,
# setxattr, lsetxattr, fsetxattr, setxattrat; on x86_64 also fork and vfork.
_TABLE = {
    "x86_64": _Calls(
        0xC000003E,
        56,
        435,
        (
            101,
            310,
            311,
            272,
            308,
            165,
            166,
            155,
            321,
            298,
            425,
            323,
            250,
            248,
            249,
            175,
            313,
            246,
            438,
            41,
            319,
            447,
            29,
            30,
            64,
            68,
            240,
            188,
            189,
            190,
            463,
            57,
            58,
        ),
    ),
    "aarch64": _Calls(
        0xC00000B7,
        220,
        435,
        (
            *(117, 270, 271, 97, 268, 40, 39, 41, 280, 241, 425, 282, 219, 217, 218, 105, 273, 104, 438, 198, 279, 447),
            *(194, 196, 190, 186, 180, 5, 6, 7, 463),
        ),
    ),
}


@functools.lru_cache(maxsize=1)
def denied_system_calls() -> bytes:
    """Returns the filter for this machine, or nothing for an architecture that is not in the table."""
    calls = _TABLE.get(platform.machine())
    return b"" if calls is None else _assemble(calls)


def _assemble(calls: _Calls) -> bytes:
    refuse = _REFUSE | errno.EPERM
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQ, 1, 0, calls.audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_GE, 0, 1, _X32_CALLS),
        (_RETURN, 0, 0, refuse),
        # ENOSYS makes the C library fall back to clone, whose flags a filter can see.
        (_JUMP_EQ, 0, 1, calls.clone3),
        (_RETURN, 0, 0, _REFUSE | errno.ENOSYS),
    ]
    for number in calls.denied:
        program += [(_JUMP_EQ, 0, 1, number), (_RETURN, 0, 0, refuse)]
    program += [
        (_JUMP_EQ, 0, 3, calls.clone),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_SET, 1, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, refuse),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
