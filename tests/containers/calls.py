"""Makes system calls and prints what they are answered, a marked line each: natively, as x32 and as i386. The arguments are such
that an answer differs where it can between a filter that refuses and a kernel that does not. Each call is made by a child."""
import ctypes
import errno
import mmap
import os
import platform

NEWUSER, NEWNS, NEWNET, SIGCHLD = 0x10000000, 0x20000, 0x40000000, 17
X32 = 0x40000000
NOWHERE = -1  # an address that cannot be read, and a descriptor that is not open

# Name, number natively, number in i386, arguments.
CALLS = [
    ("getpid", 39, 20, ()),
    ("clone: a process", 56, 120, (SIGCHLD,)),
    ("clone: users", 56, 120, (SIGCHLD | NEWUSER,)),
    ("clone: users and mounts", 56, 120, (SIGCHLD | NEWUSER | NEWNS,)),
    ("clone3", 435, 435, (0, 0)),
    ("unshare: nothing", 272, 310, (0,)),
    ("unshare: users", 272, 310, (NEWUSER,)),
    ("unshare: users and the network", 272, 310, (NEWUSER | NEWNET,)),
    ("setns", 308, 346, (NOWHERE, 0)),
    ("mount", 165, 21, (NOWHERE, NOWHERE, NOWHERE)),
    ("umount", None, 22, (NOWHERE,)),
    ("umount2", 166, 52, (NOWHERE, 0)),
    ("fsopen", 430, 430, (NOWHERE, 0)),
    ("fsconfig", 431, 431, (NOWHERE, 0, 0)),
    ("fsmount", 432, 432, (NOWHERE, 0, 0)),
    ("fspick", 433, 433, (NOWHERE, NOWHERE, 0)),
    ("open_tree", 428, 428, (NOWHERE, NOWHERE, 0)),
    ("move_mount", 429, 429, (NOWHERE, NOWHERE, NOWHERE)),
    ("mount_setattr", 442, 442, (NOWHERE, NOWHERE, 0)),
    ("open_tree_attr", 467, 467, (NOWHERE, NOWHERE, 0)),
    ("bpf", 321, 357, (NOWHERE, 0, 0)),
    ("perf_event_open", 298, 336, (NOWHERE, 0, NOWHERE)),
    ("fanotify_init", 300, 338, (NOWHERE, 0)),
    ("lookup_dcookie", 212, 253, (0, 0, 0)),
    ("quotactl", 179, 131, (NOWHERE, 0, 0)),
    ("quotactl_fd", 443, 443, (NOWHERE, 0, 0)),
    ("syslog", 103, 103, (10, 0, 0)),
    ("sethostname", 170, 74, (NOWHERE, 1)),
    ("setdomainname", 171, 121, (NOWHERE, 1)),
    ("lsm_get_self_attr", 459, 459, (0, 0, 0)),
    ("lsm_set_self_attr", 460, 460, (0, 0, 0)),
    ("lsm_list_modules", 461, 461, (0, 0, 0)),
    ("ptrace", 101, 26, (0, 0, 0)),
    ("keyctl", 250, 288, (0, 0, 0)),
    ("personality", 135, 136, (NOWHERE,)),
    ("open_by_handle_at", 304, 342, (NOWHERE, 0, 0)),
    ("userfaultfd", 323, 374, (0,)),
    ("io_uring_setup", 425, 425, (0, 0)),
    ("kexec_load", 246, 283, (0, 0, 0)),
    ("reboot", 169, 88, (0, 0, 0)),
    ("a number that no call has", 999, 999, ()),
]

libc = ctypes.CDLL(None, use_errno=True)
# push rbx; push rbp; mov eax, edi; mov ebx, esi; xchg ecx, edx; xor esi, esi; xor edi, edi; xor ebp, ebp; int 0x80; pop rbp; pop rbx; ret
CODE = bytes.fromhex("5355 89f8 89f3 87ca 31f6 31ff 31ed cd80 5d5b c3")
page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(CODE)
int80 = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_int] * 4)(ctypes.addressof(ctypes.c_char.from_buffer(page)))


def native(number, arguments):
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(it) for it in arguments + (0,) * (6 - len(arguments))])
    return -ctypes.get_errno() if result == -1 else result


def i386(number, arguments):
    return int80(number, *arguments + (0,) * (3 - len(arguments)))


def answer(name, call, number, arguments):
    """In a child: what it changes of itself ends with it."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        result = call(number, arguments)
        if result != 0 or not name.startswith("clone"):  # a child of the child says nothing
            os.write(theirs, (errno.errorcode.get(-result, str(result)) if result < 0 else "done").encode())
        os._exit(0)
    os.close(theirs)
    said = os.read(ours, 100).decode()
    os.close(ours)
    status = os.waitpid(child, 0)[1]
    return said if status == 0 else f"ended with status {status}"


if platform.machine() == "x86_64":
    for name, number, number32, arguments in CALLS:
        ways = [("native", native, number), ("x32", native, number and number | X32), ("i386", i386, number32)]
        for way, call, number in ways:
            if number is not None:
                print(f"app: call {way} {name}: {answer(name, call, number, arguments)}")
with open("/proc/self/status") as status:
    for line in status:
        if line.startswith(("Seccomp", "NoNewPrivs", "Cap", "Uid", "Gid")):
            print("app: " + line.rstrip("\n"))
print("app: all calls are made", flush=True)
