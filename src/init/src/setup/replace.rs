//! Writing a file so that it is whole at any moment: aside, synced, renamed, the directory synced.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::Path;

use orlop_config::Owner;

/// Makes `path` a file with this content, these permission bits and this owner, in place of a file or link of that name.
/// Gives whether anything had to be changed.
pub(super) fn replace(path: &Path, content: &[u8], mode: u32, owner: Owner) -> io::Result<bool> {
    if is_same(path, content, mode, owner) {
        return Ok(false);
    }
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut aside = std::ffi::OsString::from(".");
    aside.push(name);
    aside.push(".new");
    let aside = directory.join(aside);
    if let Err(error) = fs::remove_file(&aside)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let written = write_aside(&aside, content, mode, owner).and_then(|()| fs::rename(&aside, path));
    if written.is_err() {
        // What was wrong is told by the write.
        let _ = fs::remove_file(&aside);
    }
    written?;
    File::open(directory)?.sync_all()?;
    Ok(true)
}

fn write_aside(aside: &Path, content: &[u8], mode: u32, owner: Owner) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(aside)?;
    file.write_all(content)?;
    // The owner first: chown(2) clears the bits that change the user.
    let metadata = file.metadata()?;
    if (metadata.uid(), metadata.gid()) != (owner.uid, owner.gid) {
        fchown(&file, Some(owner.uid), Some(owner.gid))?;
    }
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

fn is_same(path: &Path, content: &[u8], mode: u32, owner: Owner) -> bool {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return false;
    };
    metadata.is_file()
        && metadata.mode() & 0o7777 == mode
        && (metadata.uid(), metadata.gid()) == (owner.uid, owner.gid)
        && usize::try_from(metadata.len()) == Ok(content.len())
        && fs::read(path).is_ok_and(|there| there == content)
}
