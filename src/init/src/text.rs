//! Small files, the kernel's own among them.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// Room for what such files hold; a longer one is read in more parts.
const ROOM_BYTES: usize = 2048;

/// Reads a whole file, without asking for its size first as [`std::fs::read`] does: files of the kernel have none, and the question costs the
/// kernel as much as the answer is long.
///
/// # Errors
/// Those of open(2) and read(2).
pub fn read_bytes(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(ROOM_BYTES);
    // Of a file itself the library asks the size here as well.
    File::open(path)?.take(u64::MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a whole file as text; what is not UTF-8 becomes U+FFFD.
///
/// # Errors
/// Those of open(2) and read(2).
pub fn read(path: impl AsRef<Path>) -> io::Result<String> {
    let bytes = read_bytes(path)?;
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|err| String::from_utf8_lossy(err.as_bytes()).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_whatever_its_size() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("text");
        for length in [0, 1, ROOM_BYTES, ROOM_BYTES + 1, 100_000] {
            let text = "x".repeat(length);
            std::fs::write(&path, &text).unwrap();
            assert!(read(&path).unwrap() == text, "{length} bytes");
        }
        std::fs::write(&path, b"a\xffb").unwrap();
        assert_eq!(read(&path).unwrap(), "a\u{fffd}b");
        assert!(read("/proc/self/stat").unwrap().contains(')'));
    }
}
