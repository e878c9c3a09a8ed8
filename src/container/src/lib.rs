//! The container runtime: namespaces, mounts, cgroups, capabilities, seccomp, exec.
