"""The daemons' seccomp profiles, deploy/seccomp: which system calls each may make."""

import ctypes
import ctypes.util
import json

from check import ROOT, check, current
from chart import containers, rendered

# What programs of libc, tokio, rustls, the AWS SDK and nft call, what runtimes call before they execute a container's program,
# and what is like it. Generous: what a newer libc of amd64 or arm64 tries first is here, or does without by ENOSYS.
COMMON = """
accept accept4 access arch_prctl alarm bind brk capget capset chdir chmod chown clock_getres clock_gettime clock_nanosleep close
close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait
eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fallocate fchdir fchmod fchmodat fchown fchownat
fcntl fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstatfs fsync ftruncate futex futimesat
get_mempolicy get_robust_list getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups getitimer getpeername getpgid getpgrp
getpid getppid getpriority getrandom getresgid getresuid getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid
getxattr inotify_add_watch inotify_init inotify_init1 inotify_rm_watch ioctl kill landlock_add_rule landlock_create_ruleset
landlock_restrict_self lchown lgetxattr link linkat listen listxattr llistxattr lremovexattr lseek lsetxattr lstat madvise membarrier
memfd_create mincore mkdir mkdirat mlock mlock2 mlockall mmap mprotect mremap msync munlock munlockall munmap nanosleep newfstatat open
openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 poll ppoll prctl pread64 preadv preadv2 prlimit64 pselect6 pwrite64
pwritev pwritev2 read readahead readlink readlinkat readv recvfrom recvmmsg recvmsg removexattr rename renameat renameat2
restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select sendfile sendmmsg
sendmsg sendto set_robust_list set_tid_address setfsgid setfsuid setgid setgroups setitimer setpgid setpriority setregid setresgid
setresuid setreuid setrlimit setsid setsockopt setuid setxattr shutdown sigaltstack signalfd signalfd4 socketpair splice stat statfs
statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime
timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill truncate umask uname unlink unlinkat utime utimensat utimes
vfork wait4 waitid write writev
""".split()
# And what its work is.
OWN = {
    "ipamd": [],
    # Maps and programs; what stands at the node's own input.
    "policyd": ["bpf", "perf_event_open"],
    # The same, and its namespaces, which it enters.
    "proxy": ["bpf", "perf_event_open", "setns"],
}
# Ways out of a container or into the kernel that none of them needs: no list may have one.
NEVER = """
acct add_key chroot clone3 delete_module fanotify_init finit_module fsconfig fsmount fsopen init_module io_uring_enter
io_uring_register io_uring_setup ioperm iopl kcmp kexec_file_load kexec_load keyctl mknod mknodat mount mount_setattr move_mount
name_to_handle_at open_by_handle_at open_tree personality pidfd_getfd pivot_root process_madvise process_vm_readv process_vm_writev
ptrace quotactl reboot request_key sethostname settimeofday clock_settime swapoff swapon syslog umount2 unshare userfaultfd vmsplice
""".split()
# AF_UNIX, AF_INET, AF_INET6, AF_NETLINK: the families of the units of deploy/systemd.
FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16}
# Every CLONE_NEW* but CLONE_NEWTIME, which clone(2) does not have: no process begins in a namespace of its own.
NEW_NAMESPACES = 0x7E020000


def profile(name):
    """A profile as runtimes read it (OCI runtime specification, seccomp). Without `architectures` only system calls of the machine's own are let pass."""
    allow = {"action": "SCMP_ACT_ALLOW"}
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        # ENOSYS: what libc does without, it does without. So clone3, whose flags cannot be looked at, becomes clone.
        "defaultErrnoRet": 38,
        "syscalls": [
            {"names": sorted(COMMON + OWN[name]), **allow},
            {"names": ["clone"], **allow, "args": [{"index": 0, "value": NEW_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
            *({"names": ["socket"], **allow, "args": [{"index": 0, "value": number, "op": "SCMP_CMP_EQ"}]} for number in FAMILIES.values()),
            # Refused, as capabilities refuse it.
            {"names": sorted(set(NEVER) - {"clone3"}), "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
        ],
    }


@check
def profiles_are_what_is_listed():
    for name in OWN:
        current(f"deploy/seccomp/{name}.json", json.dumps(profile(name), indent=1) + "\n")


@check
def profiles_let_nothing_pass_that_is_a_way_out():
    for name, own in OWN.items():
        allowed = COMMON + own
        assert len(set(allowed)) == len(allowed), f"{name}: twice: {[one for one in allowed if allowed.count(one) > 1]}"
        assert not set(allowed) & set(NEVER), name
        assert not {"clone", "socket"} & set(allowed), f"{name}: those are looked at"
        # What a container's program cannot begin or end without.
        needed = {"execve", "exit_group", "mmap", "mprotect", "brk", "openat", "read", "write", "close", "futex", "rt_sigaction", "prctl", "capset"}
        assert needed <= set(allowed), name


@check
def profiles_name_calls_that_there_are():
    library = ctypes.util.find_library("seccomp")
    if library is None:
        return
    resolve = ctypes.CDLL(library).seccomp_syscall_resolve_name
    unknown = [name for name in {*COMMON, *NEVER, "clone", "socket", *sum(OWN.values(), [])} if resolve(name.encode()) == -1]
    assert not unknown, f"libseccomp knows no {sorted(unknown)}"


@check
def units_have_the_families_of_the_profiles():
    for name in OWN:
        unit = (ROOT / f"deploy/systemd/sluice-{name}.service").read_text()
        assert f"\nRestrictAddressFamilies={' '.join(FAMILIES)}\n" in unit, name


@check
def containers_use_their_profiles_where_that_is_asked_for():
    for combination, asked in [("defaults", False), ("seccomp profiles of its own", True), ("taken off with its seccomp profiles", True)]:
        for found in rendered(combination):
            if found["kind"] != "DaemonSet":
                continue
            installed = []
            for container in containers(found):
                name, context = container["name"], container["securityContext"]
                if name == "seccomp":
                    assert container["command"][:3] == ["/usr/local/bin/sluice", "install", "seccomp"]
                    installed = [word for word in container["command"][3:] if word != "--profile"]
                expected = {"type": "RuntimeDefault"}
                if asked and name in OWN:
                    expected = {"type": "Localhost", "localhostProfile": f"sluice/{name}.json"}
                    assert name in installed, f"{combination}: nobody puts the profile of {name} in place"
                if not context.get("privileged"):
                    assert context["seccompProfile"] == expected, f"{combination}: {name}"
            assert bool(installed) == (asked and found["metadata"]["name"] != "sluice-uninstall"), combination
            mounts = [mount["mountPath"] for container in containers(found) for mount in container.get("volumeMounts", []) if mount["name"] == "seccomp"]
            assert mounts == (["/var/lib/kubelet/seccomp"] if asked else []), combination
    # Somebody's own choice is stronger.
    for found in rendered("everything else"):
        if found["kind"] == "DaemonSet":
            assert all(one["securityContext"]["seccompProfile"] == {"type": "Unconfined"} for one in containers(found) if one["name"] in OWN)
