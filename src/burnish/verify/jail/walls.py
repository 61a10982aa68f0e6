"""The walls around a strange program: namespaces, a root of its own, limits, another user, forbidden system calls.

Linux alone. What the kernel refuses raises OSError, and nothing runs.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)

NEW_MOUNTS, NEW_HOST, NEW_IPC, NEW_USERS, NEW_PIDS, NEW_NETWORK = (
    0x20000,
    0x4000000,
    0x8000000,
    1 << 28,
    1 << 29,
    1 << 30,
)
NEW_CGROUPS, NEW_TIME = 0x2000000, 0x80
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
DETACH = 2
PARENT_DEATH, SECCOMP, NO_NEW_PRIVILEGES = 1, 22, 38

DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")

# Number of each forbidden call on x86_64 and on aarch64: other namespaces and mounts, other processes' memory, memory
# that no limit counts, and large doors into the kernel that no answer needs.
FORBIDDEN = {
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "open_by_handle_at": (304, 265),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
}
CLONE, CLONE3 = (56, 220), (435, 435)
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of the tables above, and the name that the kernel gives to the machine."""


def checked(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def die_with_parent() -> None:
    checked(LIBC.prctl(PARENT_DEATH, 9, 0, 0, 0), "prctl")


def leave_namespaces() -> None:
    """The next child is the first process of a world without network, without our mounts and our processes."""
    flags = NEW_MOUNTS | NEW_HOST | NEW_IPC | NEW_PIDS | NEW_NETWORK
    user, group = os.getuid(), os.getgid()
    if user != 0:
        flags |= NEW_USERS
    checked(LIBC.unshare(flags), "unshare")
    if user != 0:
        for name, content in (
            ("setgroups", "deny"),
            ("gid_map", f"{group} {group} 1"),
            ("uid_map", f"{user} {user} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123 (pathlib costs milliseconds of start)
                file.write(content)


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [word and word.encode() for word in (source, target, kind, options)]
    checked(LIBC.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]), f"mount {target}")


def private_root(place: str, trees: list[str], num_bytes: int) -> None:
    """A root with the interpreter, its libraries, three devices, and an empty `/tmp` of bounded size; no /proc."""
    mount(None, "/", None, RECURSIVE | PRIVATE)
    mount("tmpfs", place, "tmpfs", NOSUID | NODEV, f"size={num_bytes},nr_inodes=4096,mode=755")
    os.umask(0)
    for tree in trees:
        target = place + tree
        if os.path.islink(tree):  # noqa: PTH114
            os.symlink(os.readlink(tree), target)  # noqa: PTH115, PTH211
            continue
        os.makedirs(target, 0o755, exist_ok=True)  # noqa: PTH103
        mount(tree, target, None, BIND | RECURSIVE)
        held = os.statvfs(target).f_flag & NOEXEC  # a user namespace may not take it away
        mount(None, target, None, REMOUNT | BIND | RDONLY | NOSUID | NODEV | held)
    os.makedirs(f"{place}/dev", 0o755)  # noqa: PTH103
    for device in DEVICES:
        os.close(os.open(place + device, os.O_CREAT, 0o666))
        mount(device, place + device, None, BIND)
    os.mkdir(f"{place}/tmp", 0o1777)  # noqa: PTH102
    os.chdir(place)
    checked(LIBC.syscall(FORBIDDEN["pivot_root"][column()], b".", b"."), "pivot_root")
    checked(LIBC.umount2(b".", DETACH), "umount")
    os.chdir("/tmp")


def confine(limits: dict[str, Any], user: int | None, around: int) -> None:
    """Limits, another user, no rights, no way to new ones; what follows is the strange program.

    The cap on processes counts those of one user and never binds root; a user that nobody else has is what makes it
    hold. A user namespace counts for itself, the `around` processes around the program included.
    """
    for name, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NPROC, limits["processes"] + (0 if user else around)),
    ):
        _, hard = resource.getrlimit(name)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    header, nothing = struct.pack("Ii", 0x20080522, 0), struct.pack("6I", *[0] * 6)
    checked(LIBC.capset(header, nothing), "capset")
    checked(LIBC.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), "no_new_privs")
    forbid_calls()


def column() -> int:
    machine = os.uname().machine
    if machine not in MACHINES:
        raise OSError(0, f"no table of system calls for {machine}")
    return MACHINES[machine][0]


def forbid_calls() -> None:
    """A filter of system calls: those of `FORBIDDEN` end in EPERM, those of another machine's table too."""
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    place, name = column(), MACHINES[os.uname().machine][1]
    namespaces = NEW_MOUNTS | NEW_HOST | NEW_IPC | NEW_USERS | NEW_PIDS | NEW_NETWORK | NEW_CGROUPS | NEW_TIME
    numbers = [numbers[place] for numbers in FORBIDDEN.values()]
    # (code, where to go when true, when false, value); a name of a place is resolved to a distance below
    program: list[tuple[int, str, str, int]] = [
        (load, "", "", 4),
        (equal, "", "deny", name),
        (load, "", "", 0),
        (at_least, "deny", "", 0x40000000),
        *[(equal, "deny", "", number) for number in numbers],
        (equal, "unknown", "", CLONE3[place]),  # its flags lie in memory; the C library falls back to clone
        (equal, "", "allow", CLONE[place]),
        (load, "", "", 16),
        (any_bit, "deny", "allow", namespaces),
        (give, "", "", 0x7FFF0000),
        (give, "", "", 0x00050000 | 1),
        (give, "", "", 0x00050000 | 38),
    ]
    ends = {"allow": len(program) - 3, "deny": len(program) - 2, "unknown": len(program) - 1}
    code = b"".join(
        struct.pack("HBBI", operation, *(ends[way] - line - 1 if way else 0 for way in ways), value)
        for line, (operation, *ways, value) in enumerate(program)
    )
    buffer = ctypes.create_string_buffer(code)
    filter_ = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    checked(LIBC.prctl(SECCOMP, 2, filter_, 0, 0), "seccomp")
