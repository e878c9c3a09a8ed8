//! Control groups, version 2 only: directories and files below the mount of cgroup2.

use std::io::{self, Write as _};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Where this machine has cgroup2: `/sys/fs/cgroup`, or its `unified` directory on a hybrid host.
#[must_use]
pub fn mount_point() -> Option<&'static Path> {
    [
        Path::new("/sys/fs/cgroup"),
        Path::new("/sys/fs/cgroup/unified"),
    ]
    .into_iter()
    .find(|path| rustix::fs::statfs(*path).is_ok_and(|s| s.f_type == CGROUP2_SUPER_MAGIC))
}

/// `include/uapi/linux/magic.h`.
const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;

/// The cgroup of the calling process, as an absolute path of this machine's files.
pub fn own() -> io::Result<PathBuf> {
    let not_found = || {
        io::Error::new(
            io::ErrorKind::NotFound,
            "this process is in no cgroup of version 2",
        )
    };
    let root = mount_point().ok_or_else(not_found)?;
    let list = std::fs::read_to_string("/proc/self/cgroup")?;
    let relative = list
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .ok_or_else(not_found)?;
    Ok(root.join(relative))
}

/// Writes one value to a file of a cgroup, such as `cpu.max`, with its controller enabled on the way down if it is not yet.
///
/// Controllers cost time and memory for each cgroup below: memory is on everywhere, the others where a value needs them.
///
/// # Errors
/// Those of open(2) and write(2); `NotFound` where the kernel lacks the controller or the file.
pub fn set(cgroup: &Path, file: &str, value: &str) -> io::Result<()> {
    let write = || {
        std::fs::OpenOptions::new()
            .write(true)
            .open(cgroup.join(file))?
            .write_all(value.as_bytes())
    };
    match write() {
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            let controller = file.split('.').next().unwrap_or_default();
            enable(cgroup, controller);
            write()
        }
        written => written,
    }
}

/// Hands a controller down from the root to the children of the cgroup's parent. What cannot be enabled is not there to be used.
pub fn enable(cgroup: &Path, controller: &str) {
    let mut ancestors: Vec<&Path> = cgroup.ancestors().skip(1).collect();
    ancestors.reverse();
    for ancestor in ancestors {
        let file = ancestor.join("cgroup.subtree_control");
        let Ok(enabled) = std::fs::read_to_string(&file) else {
            continue;
        };
        if !enabled.split_whitespace().any(|e| e == controller) {
            let _ = std::fs::OpenOptions::new()
                .write(true)
                .open(&file)
                .and_then(|mut file| file.write_all(format!("+{controller}").as_bytes()));
        }
    }
}

/// One instruction of eBPF: `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BpfInstruction {
    /// Operation.
    pub code: u8,
    /// Destination register in the low four bits, source register in the high ones.
    pub registers: u8,
    /// Signed offset of a jump or a memory access.
    pub offset: i16,
    /// The operand.
    pub immediate: i32,
}

/// The start of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    program_flags: u32,
}

/// The start of `union bpf_attr` for `BPF_PROG_ATTACH`.
#[repr(C)]
#[derive(Default)]
struct AttachAttributes {
    target: u32,
    program: u32,
    attach_type: u32,
    attach_flags: u32,
}

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;

/// Loads a program that decides on the use of device nodes (`BPF_PROG_TYPE_CGROUP_DEVICE`).
///
/// See [bpf(2)](https://man7.org/linux/man-pages/man2/bpf.2.html).
pub fn load_device_program(program: &[BpfInstruction]) -> io::Result<OwnedFd> {
    let attributes = LoadAttributes {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..LoadAttributes::default()
    };
    // SAFETY: `attributes` holds the length of `program` and pointers that outlive the call; the kernel reads and
    // verifies, and writes nothing without a log buffer.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const attributes,
            size_of::<LoadAttributes>(),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel made a new descriptor, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Lets `program` decide for all processes in `cgroup`, in place of what an earlier call attached there.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = AttachAttributes {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: 0,
    };
    // SAFETY: the kernel only reads `attributes`, which has the size given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_ATTACH,
            &raw const attributes,
            size_of::<AttachAttributes>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
