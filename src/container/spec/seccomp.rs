//! The seccomp filter of a container: Docker's default profile, with its rules grouped by subject.
//!
//! System calls that no rule allows fail with EPERM. A runtime ignores names that its libseccomp does not know, so that
//! calls of newer kernels and other architectures may be listed.

use super::SpecError;
use super::capabilities::Set;
use super::host::HostInfo;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArgBuilder, LinuxSeccompOperator, LinuxSyscall,
};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// System calls that are allowed under a condition.
struct Rule {
    /// The architectures; empty: all.
    processors: &'static [&'static str],
    when: When,
    /// The names, separated by white space.
    calls: &'static str,
}

enum When {
    Always,
    /// If the container has this capability.
    Has(&'static str),
    /// From this kernel version on.
    Since(u32, u32),
}

const fn always(calls: &'static str) -> Rule {
    Rule { processors: &[], when: When::Always, calls }
}

const fn has(capability: &'static str, calls: &'static str) -> Rule {
    Rule { processors: &[], when: When::Has(capability), calls }
}

const fn on(processors: &'static [&'static str], calls: &'static str) -> Rule {
    Rule { processors, when: When::Always, calls }
}

/// The rules without conditions on a call's arguments.
const RULES: &[Rule] = &[
    // Files by name.
    always(
        "access chmod chown chown32 creat faccessat faccessat2 fchmodat fchmodat2 fchownat fstatat64 futimesat lchown
        lchown32 link linkat lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2
        readlink readlinkat rename renameat renameat2 rmdir stat stat64 statfs statfs64 statx symlink symlinkat truncate
        truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes",
    ),
    // Open files.
    always(
        "_llseek cachestat close close_range copy_file_range dup dup2 dup3 fadvise64 fadvise64_64 fallocate fchmod fchown
        fchown32 fcntl fcntl64 fdatasync flock fstat fstat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 getdents
        getdents64 ioctl lseek pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readv sendfile
        sendfile64 splice sync sync_file_range syncfs tee vmsplice write writev",
    ),
    // Extended attributes.
    always(
        "fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat llistxattr
        lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat",
    ),
    // Waiting for files.
    always(
        "_newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old
        eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy
        io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit poll ppoll ppoll_time64 pselect6
        pselect6_time64 select",
    ),
    // Working directory and mounts.
    always("chdir fchdir getcwd listmount statmount"),
    // Processes and threads.
    always(
        "execve execveat exit exit_group fork get_robust_list get_thread_area getcpu getpgid getpgrp getpid getppid getsid
        gettid pidfd_open prctl process_mrelease restart_syscall rseq set_robust_list set_thread_area set_tid_address
        setpgid setsid uretprobe vfork wait4 waitid waitpid",
    ),
    always("futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake membarrier"),
    // Credentials and privileges.
    always(
        "capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid getresgid32
        getresuid getresuid32 getuid getuid32 landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp
        setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setregid setregid32 setresgid
        setresgid32 setresuid setresuid32 setreuid setreuid32 setuid setuid32",
    ),
    // Resource limits, scheduling and system information.
    always(
        "getpriority getrlimit getrusage ioprio_get ioprio_set prlimit64 sched_get_priority_max sched_get_priority_min
        sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
        sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield
        setpriority setrlimit sysinfo times ugetrlimit uname",
    ),
    // Memory.
    always(
        "brk madvise map_shadow_stack memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2 mprotect mremap
        mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages",
    ),
    // Signals.
    always(
        "kill pause pidfd_send_signal rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
        rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack signalfd signalfd4 sigprocmask sigreturn
        tgkill tkill",
    ),
    // Time.
    always(
        "adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
        clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create timer_delete
        timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime
        timerfd_gettime64 timerfd_settime timerfd_settime64",
    ),
    // Sockets, except socket(2).
    always(
        "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64
        recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair",
    ),
    // Other IPC, and keys.
    always(
        "add_key ipc keyctl mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend
        mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd request_key semctl semget semop semtimedop
        semtimedop_time64 shmat shmctl shmdt shmget",
    ),
    always("getrandom riscv_hwprobe"),
    // Before Linux 4.8, a tracer could bypass the filter.
    Rule { processors: &[], when: When::Since(4, 8), calls: "process_vm_readv process_vm_writev ptrace" },
    on(&["x86_64"], "arch_prctl"),
    on(&["x86_64", "x86"], "modify_ldt"),
    on(
        &["aarch64", "arm"],
        "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls
        sync_file_range2",
    ),
    on(&["powerpc64"], "swapcontext sync_file_range2"),
    on(&["riscv64"], "riscv_flush_icache"),
    on(&["s390x"], "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr"),
    has("BPF", "bpf"),
    has("DAC_READ_SEARCH", "open_by_handle_at"),
    has("PERFMON", "perf_event_open"),
    has(
        "SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules
        lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname
        sethostname setns syslog umount umount2 unshare",
    ),
    has("SYS_BOOT", "reboot"),
    has("SYS_CHROOT", "chroot"),
    has("SYS_MODULE", "delete_module finit_module init_module"),
    has("SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    has("SYS_PACCT", "acct"),
    has("SYS_PTRACE", "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"),
    has("SYS_RAWIO", "ioperm iopl"),
    has("SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    has("SYS_TTY_CONFIG", "vhangup"),
    has("SYSLOG", "syslog"),
];

/// `AF_VSOCK`: it reaches the hypervisor, and no namespace isolates it.
const VSOCK: u64 = 40;
/// Allowed personality(2) values: `PER_LINUX`, `PER_LINUX32`, `UNAME26`, both, and the query 0xffffffff.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// The flags of `clone` that make namespaces: cgroup, IPC, mount, network, process, user, UTS.
const NEW_NAMESPACES: u64 = 0x7e02_0000;

/// The filter for a container with these capabilities.
pub(super) fn filter(host_info: &HostInfo, capabilities: Set) -> Result<LinuxSeccomp, SpecError> {
    let applies = |rule: &&Rule| {
        let here = rule.processors.is_empty() || rule.processors.contains(&host_info.architecture);
        here && match rule.when {
            When::Always => true,
            When::Has(capability) => capabilities.has(capability),
            When::Since(major, minor) => host_info.kernel >= (major, minor),
        }
    };
    let mut names: Vec<&str> =
        RULES.iter().filter(applies).flat_map(|rule| rule.calls.split_ascii_whitespace()).collect();
    names.sort_unstable();
    names.dedup();
    let mut calls = vec![allowed(&names)];
    calls.push(allowed_if("socket", 0, LinuxSeccompOperator::ScmpCmpNe, VSOCK)?);
    for value in PERSONALITIES {
        calls.push(allowed_if("personality", 0, LinuxSeccompOperator::ScmpCmpEq, value)?);
    }
    if !capabilities.has("SYS_ADMIN") {
        // On s390x the flags are the second argument.
        let at = usize::from(host_info.architecture == "s390x");
        calls.push(allowed_if("clone", at, LinuxSeccompOperator::ScmpCmpMaskedEq, NEW_NAMESPACES)?);
        // A filter cannot read the flags, which are passed by pointer. ENOSYS makes programs fall back to clone(2).
        let mut clone3 = allowed(&["clone3"]);
        clone3.set_action(LinuxSeccompAction::ScmpActErrno).set_errno_ret(Some(ENOSYS));
        calls.push(clone3);
    }
    let mut filter = LinuxSeccomp::default();
    filter
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(EPERM))
        .set_architectures(architectures(host_info.architecture))
        .set_syscalls(Some(calls));
    Ok(filter)
}

fn allowed(names: &[&str]) -> LinuxSyscall {
    let mut call = LinuxSyscall::default();
    call.set_names(names.iter().map(|name| (*name).to_owned()).collect()).set_action(LinuxSeccompAction::ScmpActAllow);
    call
}

/// Allows a call by its argument at `index`. For a masked comparison, `value` is the mask, and no bit of it may be set.
fn allowed_if(name: &str, index: usize, op: LinuxSeccompOperator, value: u64) -> Result<LinuxSyscall, SpecError> {
    let mut argument = LinuxSeccompArgBuilder::default().index(index).op(op).value(value);
    if op == LinuxSeccompOperator::ScmpCmpMaskedEq {
        argument = argument.value_two(0u64);
    }
    let mut call = allowed(&[name]);
    call.set_args(Some(vec![argument.build()?]));
    Ok(call)
}

/// The architectures whose programs run on `arch`; `None`: only the runtime's own.
fn architectures(arch: &str) -> Option<Vec<Arch>> {
    Some(match arch {
        "x86_64" => vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
        "aarch64" => vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm],
        "riscv64" => vec![Arch::ScmpArchRiscv64],
        "s390x" => vec![Arch::ScmpArchS390x, Arch::ScmpArchS390],
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn host_info(architecture: &'static str, kernel: (u32, u32)) -> HostInfo {
        HostInfo { architecture, kernel, ..crate::container::spec::tests::host_info() }
    }

    fn set(names: &[&str]) -> Set {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        super::super::capabilities::chosen(&names, &["ALL".to_owned()], Set(u64::MAX)).unwrap()
    }

    fn made(host_info: &HostInfo, capabilities: &[&str]) -> Value {
        serde_json::to_value(filter(host_info, set(capabilities)).unwrap()).unwrap()
    }

    /// The rules of a filter that name a call.
    fn about(filter: &Value, call: &str) -> Vec<Value> {
        let rules = filter["syscalls"].as_array().unwrap().iter();
        rules.filter(|rule| rule["names"].as_array().unwrap().contains(&json!(call))).cloned().collect()
    }

    /// Whether a call is allowed whatever its arguments.
    fn is_free(filter: &Value, call: &str) -> bool {
        about(filter, call).iter().any(|rule| rule["action"] == "SCMP_ACT_ALLOW" && rule.get("args").is_none())
    }

    #[test]
    fn unlisted_calls_are_denied() {
        let filter = made(&host_info("x86_64", (6, 18)), &[]);
        assert_eq!(filter["defaultAction"], "SCMP_ACT_ERRNO");
        assert_eq!(filter["defaultErrnoRet"], 1);
        assert_eq!(filter["architectures"], json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]));
        let refused = ["mount", "bpf", "kexec_load", "io_uring_setup", "userfaultfd", "swapon", "setns", "reboot", "x"];
        for call in refused {
            assert!(about(&filter, call).is_empty(), "{call}");
        }
        for call in ["read", "execve", "openat2", "statx", "rseq", "clock_gettime", "mknod", "setuid", "arch_prctl"] {
            assert!(is_free(&filter, call), "{call}");
        }
    }

    #[test]
    fn capabilities_open_calls() {
        let host_info = host_info("x86_64", (6, 18));
        let pairs = [
            ("SYS_ADMIN", "mount"),
            ("SYS_ADMIN", "unshare"),
            ("SYS_ADMIN", "clone3"),
            ("SYS_CHROOT", "chroot"),
            ("SYS_MODULE", "init_module"),
            ("SYS_TIME", "clock_settime64"),
            ("SYS_NICE", "mbind"),
            ("SYSLOG", "syslog"),
            ("BPF", "bpf"),
            ("PERFMON", "perf_event_open"),
            ("DAC_READ_SEARCH", "open_by_handle_at"),
            ("SYS_PTRACE", "kcmp"),
            ("SYS_BOOT", "reboot"),
            ("SYS_RAWIO", "iopl"),
            ("SYS_PACCT", "acct"),
            ("SYS_TTY_CONFIG", "vhangup"),
        ];
        for (capability, call) in pairs {
            assert!(is_free(&made(&host_info, &[capability]), call), "{call} with {capability}");
            assert!(!is_free(&made(&host_info, &["CHOWN", "NET_ADMIN"]), call), "{call} without {capability}");
        }
    }

    #[test]
    fn arguments_count_where_they_make_a_difference() {
        let plain = made(&host_info("x86_64", (6, 18)), &["CHOWN"]);
        let clone = json!([{"index": 0, "value": 0x7e02_0000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]);
        assert_eq!(about(&plain, "clone")[0]["args"], clone);
        let clone3 = json!([{"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]);
        assert_eq!(json!(about(&plain, "clone3")), clone3);
        let socket = json!([{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]);
        assert_eq!(about(&plain, "socket")[0]["args"], socket);
        let values: Vec<u64> =
            about(&plain, "personality").iter().map(|rule| rule["args"][0]["value"].as_u64().unwrap()).collect();
        assert_eq!(values, PERSONALITIES);
        let admin = made(&host_info("x86_64", (6, 18)), &["SYS_ADMIN"]);
        assert!(about(&admin, "clone").len() == 1 && about(&admin, "clone3").len() == 1);
        let other = made(&host_info("s390x", (6, 18)), &[]);
        assert_eq!(about(&other, "clone")[0]["args"][0]["index"], 1);
    }

    #[test]
    fn processors_and_kernels_differ() {
        let arm = made(&host_info("aarch64", (6, 1)), &[]);
        assert_eq!(arm["architectures"], json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]));
        assert!(is_free(&arm, "cacheflush") && is_free(&arm, "sync_file_range2") && !is_free(&arm, "arch_prctl"));
        let old = host_info("x86_64", (4, 4));
        assert!(is_free(&arm, "ptrace") && !is_free(&made(&old, &[]), "ptrace"));
        assert!(is_free(&made(&old, &["SYS_PTRACE"]), "ptrace"));
        let unknown = made(&host_info("loongarch64", (6, 1)), &[]);
        assert!(unknown.get("architectures").is_none() && is_free(&unknown, "read"));
    }

    #[test]
    fn no_name_stands_twice_under_one_condition() {
        let mut plain: Vec<&str> = RULES
            .iter()
            .filter(|rule| matches!(rule.when, When::Always) && rule.processors.is_empty())
            .flat_map(|rule| rule.calls.split_ascii_whitespace())
            .collect();
        let all = plain.len();
        plain.sort_unstable();
        plain.dedup();
        assert_eq!((plain.len(), all), (364, 364));
        let odd = |name: &&str| !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        assert!(!plain.iter().any(odd));
    }
}
