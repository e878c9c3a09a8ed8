//! Which system calls a container may make: the table behind [`crate::seccomp`].
//!
//! The choice is that of the profile that Docker and Podman users know. What needs a capability in the kernel anyway is
//! open only to containers that have it.

use libc::c_long;

/// The last number that the tables speak of (`open_tree_attr`, Linux 6.15).
///
/// What comes after answers `ENOSYS`, so that a newer C library falls back instead of failing.
pub(crate) const LAST_KNOWN: u32 = 467;

/// Calls that every container may make.
#[rustfmt::skip]
pub(crate) const ALLOWED: &[c_long] = &[
    // Files.
    libc::SYS_read, libc::SYS_write, libc::SYS_open, libc::SYS_close, libc::SYS_stat, libc::SYS_fstat, libc::SYS_lstat,
    libc::SYS_lseek, libc::SYS_pread64, libc::SYS_pwrite64, libc::SYS_readv, libc::SYS_writev, libc::SYS_preadv,
    libc::SYS_pwritev, libc::SYS_preadv2, libc::SYS_pwritev2, libc::SYS_access, libc::SYS_faccessat,
    libc::SYS_faccessat2, libc::SYS_creat, libc::SYS_openat, libc::SYS_openat2, libc::SYS_close_range, libc::SYS_dup,
    libc::SYS_dup2, libc::SYS_dup3, libc::SYS_fcntl, libc::SYS_flock, libc::SYS_fsync, libc::SYS_fdatasync,
    libc::SYS_truncate, libc::SYS_ftruncate, libc::SYS_fallocate, libc::SYS_fadvise64, libc::SYS_readahead,
    libc::SYS_getdents, libc::SYS_getdents64, libc::SYS_getcwd, libc::SYS_chdir, libc::SYS_fchdir, libc::SYS_rename,
    libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_mkdir, libc::SYS_mkdirat, libc::SYS_rmdir, libc::SYS_link,
    libc::SYS_linkat, libc::SYS_unlink, libc::SYS_unlinkat, libc::SYS_symlink, libc::SYS_symlinkat,
    libc::SYS_readlink, libc::SYS_readlinkat, libc::SYS_chmod, libc::SYS_fchmod, libc::SYS_fchmodat,
    libc::SYS_fchmodat2, libc::SYS_chown, libc::SYS_fchown, libc::SYS_fchownat, libc::SYS_lchown, libc::SYS_umask,
    libc::SYS_mknod, libc::SYS_mknodat, libc::SYS_utime, libc::SYS_utimes, libc::SYS_utimensat, libc::SYS_futimesat,
    libc::SYS_statfs, libc::SYS_fstatfs, libc::SYS_statx, libc::SYS_newfstatat, libc::SYS_sync, libc::SYS_syncfs,
    libc::SYS_sync_file_range, libc::SYS_sendfile, libc::SYS_splice, libc::SYS_tee, libc::SYS_vmsplice,
    libc::SYS_copy_file_range, libc::SYS_name_to_handle_at, libc::SYS_ioctl, libc::SYS_fanotify_mark,
    libc::SYS_inotify_init, libc::SYS_inotify_init1, libc::SYS_inotify_add_watch, libc::SYS_inotify_rm_watch,
    libc::SYS_setxattr, libc::SYS_lsetxattr, libc::SYS_fsetxattr, libc::SYS_getxattr, libc::SYS_lgetxattr,
    libc::SYS_fgetxattr, libc::SYS_listxattr, libc::SYS_llistxattr, libc::SYS_flistxattr, libc::SYS_removexattr,
    libc::SYS_lremovexattr, libc::SYS_fremovexattr,
    463 /* setxattrat */, 464 /* getxattrat */, 465 /* listxattrat */, 466 /* removexattrat */,
    451 /* cachestat */, 457 /* statmount */, 458 /* listmount */,
    // Waiting and asynchronous work.
    libc::SYS_poll, libc::SYS_ppoll, libc::SYS_select, libc::SYS_pselect6, libc::SYS_epoll_create,
    libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_ctl_old, libc::SYS_epoll_wait,
    libc::SYS_epoll_wait_old, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_eventfd, libc::SYS_eventfd2,
    libc::SYS_signalfd, libc::SYS_signalfd4, libc::SYS_pipe, libc::SYS_pipe2, libc::SYS_io_setup,
    libc::SYS_io_destroy, libc::SYS_io_getevents, 333 /* io_pgetevents */, libc::SYS_io_submit, libc::SYS_io_cancel,
    // Memory.
    libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_brk, libc::SYS_msync,
    libc::SYS_mincore, libc::SYS_madvise, libc::SYS_mlock, libc::SYS_mlock2, libc::SYS_munlock, libc::SYS_mlockall,
    libc::SYS_munlockall, libc::SYS_memfd_create, libc::SYS_memfd_secret, libc::SYS_membarrier,
    libc::SYS_remap_file_pages, libc::SYS_pkey_mprotect, libc::SYS_pkey_alloc, libc::SYS_pkey_free,
    libc::SYS_process_mrelease, 453 /* map_shadow_stack */, libc::SYS_mseal,
    // Processes and threads.
    libc::SYS_fork, libc::SYS_vfork, libc::SYS_execve, libc::SYS_execveat, libc::SYS_exit, libc::SYS_exit_group,
    libc::SYS_wait4, libc::SYS_waitid, libc::SYS_getpid, libc::SYS_getppid, libc::SYS_gettid, libc::SYS_getpgid,
    libc::SYS_setpgid, libc::SYS_getpgrp, libc::SYS_getsid, libc::SYS_setsid, libc::SYS_prctl, libc::SYS_arch_prctl,
    libc::SYS_set_tid_address, libc::SYS_set_robust_list, libc::SYS_get_robust_list, libc::SYS_rseq,
    libc::SYS_set_thread_area, libc::SYS_get_thread_area, libc::SYS_modify_ldt, libc::SYS_restart_syscall,
    libc::SYS_getrlimit, libc::SYS_setrlimit, libc::SYS_prlimit64, libc::SYS_getrusage, libc::SYS_times,
    libc::SYS_getpriority, libc::SYS_setpriority, libc::SYS_ioprio_get, libc::SYS_ioprio_set, libc::SYS_getcpu,
    libc::SYS_sched_yield, libc::SYS_sched_getaffinity, libc::SYS_sched_setaffinity, libc::SYS_sched_getattr,
    libc::SYS_sched_setattr, libc::SYS_sched_getparam, libc::SYS_sched_setparam, libc::SYS_sched_getscheduler,
    libc::SYS_sched_setscheduler, libc::SYS_sched_get_priority_max, libc::SYS_sched_get_priority_min,
    libc::SYS_sched_rr_get_interval, libc::SYS_futex, libc::SYS_futex_waitv, 454 /* futex_wake */,
    455 /* futex_wait */, 456 /* futex_requeue */, libc::SYS_pidfd_open, libc::SYS_pidfd_send_signal,
    libc::SYS_ptrace, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev, libc::SYS_seccomp,
    libc::SYS_landlock_create_ruleset, libc::SYS_landlock_add_rule, libc::SYS_landlock_restrict_self,
    335 /* uretprobe */,
    // Signals.
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait, libc::SYS_rt_sigqueueinfo, libc::SYS_rt_tgsigqueueinfo, libc::SYS_rt_sigsuspend,
    libc::SYS_sigaltstack, libc::SYS_kill, libc::SYS_tkill, libc::SYS_tgkill, libc::SYS_pause,
    // Identity.
    libc::SYS_getuid, libc::SYS_getgid, libc::SYS_geteuid, libc::SYS_getegid, libc::SYS_getgroups,
    libc::SYS_setgroups, libc::SYS_setuid, libc::SYS_setgid, libc::SYS_setreuid, libc::SYS_setregid,
    libc::SYS_setresuid, libc::SYS_getresuid, libc::SYS_setresgid, libc::SYS_getresgid, libc::SYS_setfsuid,
    libc::SYS_setfsgid, libc::SYS_capget, libc::SYS_capset,
    // Time.
    libc::SYS_nanosleep, libc::SYS_clock_nanosleep, libc::SYS_clock_gettime, libc::SYS_clock_getres,
    libc::SYS_clock_adjtime, libc::SYS_adjtimex, libc::SYS_gettimeofday, libc::SYS_time, libc::SYS_alarm,
    libc::SYS_getitimer, libc::SYS_setitimer, libc::SYS_timer_create, libc::SYS_timer_settime,
    libc::SYS_timer_gettime, libc::SYS_timer_getoverrun, libc::SYS_timer_delete, libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime, libc::SYS_timerfd_gettime,
    // Sockets; `socket` itself has a rule of its own.
    libc::SYS_socketpair, libc::SYS_connect, libc::SYS_accept, libc::SYS_accept4, libc::SYS_bind, libc::SYS_listen,
    libc::SYS_getsockname, libc::SYS_getpeername, libc::SYS_getsockopt, libc::SYS_setsockopt, libc::SYS_shutdown,
    libc::SYS_sendto, libc::SYS_recvfrom, libc::SYS_sendmsg, libc::SYS_recvmsg, libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    // System V and POSIX message passing.
    libc::SYS_shmget, libc::SYS_shmat, libc::SYS_shmctl, libc::SYS_shmdt, libc::SYS_semget, libc::SYS_semop,
    libc::SYS_semctl, libc::SYS_semtimedop, libc::SYS_msgget, libc::SYS_msgsnd, libc::SYS_msgrcv, libc::SYS_msgctl,
    libc::SYS_mq_open, libc::SYS_mq_unlink, libc::SYS_mq_timedsend, libc::SYS_mq_timedreceive, libc::SYS_mq_notify,
    libc::SYS_mq_getsetattr,
    // The machine.
    libc::SYS_uname, libc::SYS_sysinfo, libc::SYS_getrandom,
];

/// Calls that come with a capability: its number (`include/uapi/linux/capability.h`) and what it opens.
#[rustfmt::skip]
pub(crate) const ALLOWED_BY_CAPABILITY: &[(u32, &[c_long])] = &[
    (2 /* DAC_READ_SEARCH */, &[libc::SYS_open_by_handle_at]),
    (16 /* SYS_MODULE */, &[libc::SYS_delete_module, libc::SYS_init_module, libc::SYS_finit_module]),
    (17 /* SYS_RAWIO */, &[libc::SYS_iopl, libc::SYS_ioperm]),
    (18 /* SYS_CHROOT */, &[libc::SYS_chroot]),
    (19 /* SYS_PTRACE */, &[libc::SYS_kcmp, libc::SYS_pidfd_getfd, libc::SYS_process_madvise]),
    (20 /* SYS_PACCT */, &[libc::SYS_acct]),
    (SYS_ADMIN, &[
        libc::SYS_bpf, libc::SYS_clone, libc::SYS_clone3, libc::SYS_fanotify_init, libc::SYS_fsconfig,
        libc::SYS_fsmount, libc::SYS_fsopen, libc::SYS_fspick, libc::SYS_lookup_dcookie,
        459 /* lsm_get_self_attr */, 460 /* lsm_set_self_attr */, 461 /* lsm_list_modules */, libc::SYS_mount,
        libc::SYS_mount_setattr, libc::SYS_move_mount, libc::SYS_open_tree, 467 /* open_tree_attr */,
        libc::SYS_perf_event_open, libc::SYS_pivot_root, libc::SYS_quotactl, libc::SYS_quotactl_fd,
        libc::SYS_setdomainname, libc::SYS_sethostname, libc::SYS_setns, libc::SYS_syslog, libc::SYS_umount2,
        libc::SYS_unshare,
    ]),
    (22 /* SYS_BOOT */, &[libc::SYS_reboot]),
    (23 /* SYS_NICE */, &[
        libc::SYS_get_mempolicy, libc::SYS_mbind, libc::SYS_set_mempolicy, libc::SYS_set_mempolicy_home_node,
    ]),
    (25 /* SYS_TIME */, &[libc::SYS_settimeofday, libc::SYS_clock_settime]),
    (26 /* SYS_TTY_CONFIG */, &[libc::SYS_vhangup]),
    (34 /* SYSLOG */, &[libc::SYS_syslog]),
    (38 /* PERFMON */, &[libc::SYS_perf_event_open]),
    (39 /* BPF */, &[libc::SYS_bpf]),
];

/// `CAP_SYS_ADMIN`.
pub(crate) const SYS_ADMIN: u32 = 21;

/// Flags of `clone(2)` that make namespaces: refused, so that no container can open the kernel's user-namespace paths.
pub(crate) const CLONE_NAMESPACES: u32 = 0x7e02_0000;

/// Values of `personality(2)` that change nothing of weight: Linux, Linux 32 bit, both with the uname of 2.6, and the question.
pub(crate) const PERSONALITIES: [u32; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// `AF_VSOCK` reaches the hypervisor past every network namespace.
pub(crate) const VSOCK: u32 = 40;
