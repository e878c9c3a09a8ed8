//! The key that signs updates, and the payload that brings a version to machines.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use orlop_update::channel::{DEFAULT, Latest};
use orlop_update::hex::Hash;
use orlop_update::pack::{Compressor, Contents, pack};
use orlop_update::signature::{PublicKey, SecretKey};

use super::Project;
use super::disk::Slot;

/// The environment variable with the key's file; see [`Key::of_project`].
const KEY_VARIABLE: &str = "ORLOP_UPDATE_KEY";

/// zstd's level for payloads: the kernel image and the root are compressed inside already.
const LEVEL: u8 = 6;

/// The machines that images are for.
const ARCHITECTURE: &str = "x86_64";

/// The key that images trust.
#[derive(Debug)]
pub struct Key {
    public: PublicKey,
    secret: Option<SecretKey>,
}

impl Key {
    /// The key in the file that `$ORLOP_UPDATE_KEY` names: a secret one without a password, or a public one whose owner signs
    /// elsewhere. Without the variable it is one for development, made once in `build/update-key`.
    ///
    /// # Errors
    /// The file cannot be read, or holds no key.
    pub fn of_project(project: &Project) -> Result<Self> {
        if let Some(path) = std::env::var_os(KEY_VARIABLE) {
            return Self::read(Path::new(&path)).with_context(|| KEY_VARIABLE.to_owned());
        }
        let path = project.path("build/update-key/development.key");
        if !path.exists() {
            Self::make(&path).with_context(|| format!("make {}", path.display()))?;
        }
        Self::read(&path)
    }

    /// Makes a key for development, unless another process is the first to do so.
    fn make(path: &Path) -> Result<()> {
        std::fs::create_dir_all(path.parent().unwrap_or(path))?;
        let text = SecretKey::generate()?.to_text();
        let new = path.with_extension(std::process::id().to_string());
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(&new)?.write_all(text.as_bytes())?;
        // A link, unlike a rename, replaces nothing.
        let linked = std::fs::hard_link(&new, path);
        std::fs::remove_file(&new)?;
        match linked {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// What machines verify by.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// What signs, when it is not kept elsewhere.
    #[must_use]
    pub fn secret(&self) -> Option<&SecretKey> {
        self.secret.as_ref()
    }

    fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        match (SecretKey::parse(&text), PublicKey::parse(&text)) {
            (Ok(secret), _) => Ok(Self {
                public: secret.public(),
                secret: Some(secret),
            }),
            (_, Ok(public)) => Ok(Self {
                public,
                secret: None,
            }),
            (Err(error), _) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    /// The name and the text of its file in the root's `usr/lib/orlop/update-keys`.
    pub(super) fn file(&self) -> (String, String) {
        let name = format!("usr/lib/orlop/update-keys/{}.pub", self.public.id);
        (name, self.public.to_text())
    }
}

/// Writes the payload of `slot` for machines that trust `key`.
///
/// # Errors
/// A part cannot be read or compressed.
pub fn payload(slot: &Slot, loader: &Path, key: &Key, path: &Path) -> Result<()> {
    let contents = Contents {
        version: slot.entry.version.clone(),
        architecture: ARCHITECTURE.to_owned(),
        channel: DEFAULT.to_owned(),
        root_hash: Hash(slot.root_hash.0),
        uki: slot.uki.clone(),
        root: slot.root.clone(),
        verity: slot.verity.clone(),
        loader: Some(loader.to_owned()),
    };
    let compressor = Compressor::Zstd { level: LEVEL };
    pack(&contents, &compressor, key.secret.as_ref(), path)
        .with_context(|| format!("make {}", path.display()))?;
    Ok(())
}

/// Writes the list of `payloads` into their directory.
///
/// # Errors
/// A payload is none, or the list cannot be written.
pub fn list(payloads: &[PathBuf], key: &Key) -> Result<()> {
    let Some(directory) = payloads.first().and_then(|path| path.parent()) else {
        bail!("a list of no payloads");
    };
    Latest::of(payloads)?.write(directory, key.secret.as_ref())?;
    if key.secret.is_none() {
        println!(
            "image: sign the payloads and {}/latest.json (docs/update-payload.md)",
            directory.display()
        );
    }
    Ok(())
}
