//! The random seed that one boot leaves to the next, random(4).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::path::Path;

use orlop_config::Owner;
use orlop_sys::random::{SEED_MAX, add_entropy};
use sha2::{Digest as _, Sha256};

use super::Setup;
use super::replace::replace;

const SEED: &str = "/var/lib/orlop/random-seed";

/// Says that this boot has used the seed.
const USED: &str = "/run/orlop/random-seed-used";

/// Bytes of a seed: what the kernel's pool holds, 256 bits, and as much again for what is not perfect.
const SEED_BYTES: u64 = 64;

/// Gives the kernel the seed of the last boot. It counts as entropy only when it can not be used a second time: after its
/// successor is on the disk.
pub(super) fn load(setup: &mut Setup) {
    if !setup.is_machine || Path::new(USED).exists() {
        return;
    }
    if let Err(error) = use_once(Path::new("/")) {
        setup.fail(format!("cannot use the random seed {SEED}: {error}"));
    }
    if let Err(error) = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .open(USED)
    {
        setup.fail(format!("cannot make {USED}: {error}"));
    }
}

fn use_once(root: &Path) -> io::Result<()> {
    let mut seed = Vec::new();
    match File::open(root.join(SEED.trim_start_matches('/'))) {
        Ok(file) => file.take(SEED_MAX as u64).read_to_end(&mut seed)?,
        // The first boot: the shutdown makes one, when the kernel has gathered enough.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    add_entropy(&seed, false)?;
    write_successor(root, &seed)?;
    add_entropy(&seed, u64::try_from(seed.len()) == Ok(SEED_BYTES))
}

/// Writes a seed for the next boot that is as good as the kernel's randomness is now.
pub(crate) fn save(root: &Path) -> io::Result<()> {
    let old = fs::read(root.join(SEED.trim_start_matches('/'))).unwrap_or_default();
    write_successor(root, &old)
}

/// Never worse than the old seed: that is hashed into it.
fn write_successor(root: &Path, old: &[u8]) -> io::Result<()> {
    let mut fresh = Vec::new();
    // Never waits, other than /dev/random.
    File::open("/dev/urandom")?
        .take(SEED_BYTES)
        .read_to_end(&mut fresh)?;
    let mut seed = Vec::new();
    for part in [b"0", b"1"] {
        let half = Sha256::new()
            .chain_update(part)
            .chain_update(&fresh)
            .chain_update(old);
        seed.extend_from_slice(&half.finalize());
    }
    replace(
        &root.join(SEED.trim_start_matches('/')),
        &seed,
        0o600,
        Owner::default(),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_seed_is_another() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("var/lib/orlop")).unwrap();
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let read = || fs::read(root.path().join("var/lib/orlop/random-seed")).unwrap();
        save(root.path()).unwrap();
        let first = read();
        save(root.path()).unwrap();
        assert_eq!(first.len() as u64, SEED_BYTES);
        assert_ne!(first, read());
    }
}
