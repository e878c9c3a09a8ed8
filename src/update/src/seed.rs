//! The configuration that an installation takes along: where it lies on the EFI system partition, and where the machine that
//! installs has it.

use std::fs;
use std::io;
use std::path::Path;

/// The directory on the EFI system partition.
pub const DIRECTORY: &str = "EFI/orlop";

/// What a running machine was configured by, as it came from its data source.
pub const IN_USE: &str = "/run/orlop/seed";

/// The names of the files, NoCloud's.
pub const USER_DATA: &str = "user-data";
/// The names of the files, NoCloud's.
pub const META_DATA: &str = "meta-data";

/// The files in `directory`, as the EFI system partition of another disk is to have them.
///
/// # Errors
/// A file is there and can not be read.
pub fn files(directory: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for name in [META_DATA, USER_DATA] {
        match fs::read(directory.join(name)) {
            Ok(bytes) => files.push(file(name, bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files)
}

/// One file for the EFI system partition.
#[must_use]
pub fn file(name: &str, bytes: Vec<u8>) -> (String, Vec<u8>) {
    (format!("{DIRECTORY}/{name}"), bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_goes_along() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(files(directory.path()).unwrap(), []);
        fs::write(directory.path().join(USER_DATA), "#cloud-config\n").unwrap();
        let file = file(USER_DATA, b"#cloud-config\n".to_vec());
        assert_eq!(file.0, "EFI/orlop/user-data");
        assert_eq!(files(directory.path()).unwrap(), [file]);
    }
}
