//! The smallest service: it says one thing in the kernel's log and waits to be killed.

/// Where the file is loaded.
const BASE: u64 = 0x40_0000;
/// An ELF header and one program header (elf(5)).
const HEADERS: u64 = 64 + 56;

/// A static x86-64 program that writes `text` to `/dev/kmsg` and sleeps for ever.
///
/// By hand, so that its first instruction is its first system call: the time of the line is the service's start, and no
/// C library's.
pub(super) fn program(text: &str) -> Vec<u8> {
    let text = text.as_bytes();
    let path = b"/dev/kmsg\0";
    // Lengths of the code's two parts, up to the ends of the two instructions that address data relative to themselves.
    const PATH_FROM: u32 = 12;
    const TEXT_FROM: u32 = 28;
    const CODE: u32 = 49;
    let text_at = CODE + u32::try_from(path.len()).unwrap_or(0);

    let mut code = vec![0xb8, 2, 0, 0, 0]; // mov eax, 2 (open)
    code.extend([0x48, 0x8d, 0x3d]); // lea rdi, [rip + path]
    code.extend((CODE - PATH_FROM).to_le_bytes());
    code.extend([0xbe, 1, 0, 0, 0]); // mov esi, O_WRONLY
    code.extend([0x0f, 0x05]); // syscall
    code.extend([0x89, 0xc7]); // mov edi, eax
    code.extend([0x48, 0x8d, 0x35]); // lea rsi, [rip + text]
    code.extend((text_at - TEXT_FROM).to_le_bytes());
    code.push(0xba); // mov edx, length
    code.extend(u32::try_from(text.len()).unwrap_or(0).to_le_bytes());
    code.extend([0xb8, 1, 0, 0, 0, 0x0f, 0x05]); // mov eax, 1 (write); syscall
    code.extend([0xb8, 34, 0, 0, 0, 0x0f, 0x05]); // again: mov eax, 34 (pause); syscall
    code.extend([0xeb, 0xf7]); // jmp again
    code.extend(path);
    code.extend(text);

    let size = HEADERS + code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend(2_u16.to_le_bytes()); // ET_EXEC
    file.extend(62_u16.to_le_bytes()); // EM_X86_64
    file.extend(1_u32.to_le_bytes());
    file.extend((BASE + HEADERS).to_le_bytes()); // entry
    file.extend(64_u64.to_le_bytes()); // program headers
    file.extend(0_u64.to_le_bytes()); // no sections
    file.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1_u32.to_le_bytes()); // PT_LOAD
    file.extend(5_u32.to_le_bytes()); // readable, executable
    for word in [0, BASE, BASE, size, size, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
    use std::process::Command;

    use super::*;

    #[test]
    fn the_code_is_as_long_as_its_addresses_say() {
        let bytes = program("<6>hello");
        assert_eq!(bytes.len(), 120 + 49 + 10 + 8);
        assert_eq!(&bytes[120 + 49..120 + 58], b"/dev/kmsg");
        assert_eq!(&bytes[120 + 59..], b"<6>hello");
    }

    #[test]
    fn the_kernel_runs_it_until_it_is_killed() {
        let directory = std::env::temp_dir().join(format!("orlop-marker-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("directory");
        let path = directory.join("marker");
        {
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o755)
                .open(&path)
                .expect("create");
            // Nothing that is worth a line in the host's log.
            std::io::Write::write_all(&mut file, &program("")).expect("write");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("mode");
        let status = Command::new("timeout")
            .arg("0.5")
            .arg(&path)
            .status()
            .expect("run");
        std::fs::remove_dir_all(&directory).expect("remove");
        // 124: timeout had to end it, so it neither crashed nor came to an end.
        assert_eq!(status.code(), Some(124));
    }
}
