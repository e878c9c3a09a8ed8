//! What a channel's directory offers: `latest.json` and its signature (`docs/update-payload.md`).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use orlop_boot::entries::Version;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::fetch::{self, FetchError, Patience};
use crate::manifest::Manifest;
use crate::payload::{PayloadError, read_head};
use crate::signature::{Keyring, SecretKey, SignatureError};
use crate::url::Url;

/// The file's name.
pub const FILE: &str = "latest.json";

/// The name of its signature, which is minisign's own.
pub const SIGNATURE: &str = "latest.json.minisig";

/// How payloads' names end.
pub const EXTENSION: &str = "update";

/// The channel of whoever names none.
pub const DEFAULT: &str = "stable";

const FORMAT: u32 = 1;

/// The longest `latest.json` in bytes.
const LONGEST: u64 = 1 << 20;

/// The longest signature in bytes.
const LONGEST_SIGNATURE: u64 = 4096;

/// What a directory offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latest {
    /// 1.
    pub format: u32,
    /// From when on it does not count any more, in seconds since 1970: a server that shows an old one cannot hide versions for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_s: Option<u64>,
    /// By channel and architecture.
    pub channels: BTreeMap<String, BTreeMap<String, Offer>>,
}

/// The newest version of a channel for an architecture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The version.
    pub version: Version,
    /// Where the payload is, relative to `latest.json`.
    pub payload: String,
    /// Its size in bytes, for people.
    pub bytes: u64,
}

/// Why nothing is known of a channel.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// No answer.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// No signature.
    #[error("there is no signature of {0}, so that it is not believed")]
    Unsigned(Box<Url>, #[source] FetchError),
    /// A signature that does not count.
    #[error("{0} is not believed")]
    Signature(Box<Url>, #[source] SignatureError),
    /// Out of date.
    #[error(
        "{0} counts no more since {1} s ago: whoever makes it has not renewed it, or the server shows an old one"
    )]
    Expired(Box<Url>, u64),
    /// No `latest.json`.
    #[error("{0} is not understood")]
    Json(Url, #[source] serde_json::Error),
    /// Of another format.
    #[error("{0} has format {1}; this version of Orlop knows {FORMAT}")]
    Format(Url, u32),
    /// The channel is not there.
    #[error("{url} has no channel {channel} for {architecture}; it has {present}")]
    NoChannel {
        /// The file.
        url: Box<Url>,
        /// What was asked for.
        channel: String,
        /// The machine's.
        architecture: String,
        /// What there is.
        present: String,
    },
    /// A directory of payloads can not be read or written.
    #[error("cannot use {0}")]
    Directory(PathBuf, #[source] io::Error),
    /// A payload in it is none.
    #[error("{0} is of no use")]
    Payload(PathBuf, #[source] PayloadError),
}

/// What `channel` of the directory at `url` offers for `architecture`, and where. `now_s` is the time in seconds since 1970.
pub fn check(
    url: &Url,
    channel: &str,
    architecture: &str,
    keys: &Keyring,
    now_s: u64,
    patience: Patience,
) -> Result<(Offer, Url), ChannelError> {
    let directory = url.as_directory();
    let url = directory.join(FILE).map_err(FetchError::Url)?;
    let signature = directory.join(SIGNATURE).map_err(FetchError::Url)?;
    let text = fetch(&url, &signature, keys, patience)?;
    let latest: Latest =
        serde_json::from_slice(&text).map_err(|e| ChannelError::Json(url.clone(), e))?;
    if latest.format != FORMAT {
        return Err(ChannelError::Format(url, latest.format));
    }
    if let Some(late_s) = latest.expires_s.and_then(|at| now_s.checked_sub(at)) {
        return Err(ChannelError::Expired(Box::new(url), late_s));
    }
    let offer = latest
        .channels
        .get(channel)
        .and_then(|architectures| architectures.get(architecture))
        .cloned();
    let offer = offer.ok_or_else(|| {
        let present = latest.channels.iter().flat_map(|(channel, architectures)| {
            architectures
                .keys()
                .map(move |architecture| format!("{channel} for {architecture}"))
        });
        let present: Vec<String> = present.collect();
        ChannelError::NoChannel {
            url: Box::new(url.clone()),
            channel: channel.to_owned(),
            architecture: architecture.to_owned(),
            present: if present.is_empty() {
                "none".to_owned()
            } else {
                present.join(", ")
            },
        }
    })?;
    let payload = url.join(&offer.payload).map_err(FetchError::Url)?;
    Ok((offer, payload))
}

/// The file at `url`, verified. Both files may be replaced between one request and the next: it is tried twice.
fn fetch(
    url: &Url,
    signature_url: &Url,
    keys: &Keyring,
    patience: Patience,
) -> Result<Vec<u8>, ChannelError> {
    let once = || {
        let signature = fetch::get(signature_url, LONGEST_SIGNATURE, patience)
            .map_err(|e| ChannelError::Unsigned(Box::new(url.clone()), e))?;
        let text = fetch::get(url, LONGEST, patience)?;
        let signature = std::str::from_utf8(&signature).map_err(|_| SignatureError::Form);
        signature
            .and_then(|signature| keys.verify(&text, signature))
            .map_err(|e| ChannelError::Signature(Box::new(url.clone()), e))?;
        Ok(text)
    };
    match once() {
        Err(ChannelError::Signature(_, SignatureError::Wrong(_))) => once(),
        result => result,
    }
}

impl Latest {
    /// Of each channel and architecture the newest version among `payloads`, which lie beside the list.
    pub fn of(payloads: &[PathBuf]) -> Result<Self, ChannelError> {
        let mut latest = Self {
            format: FORMAT,
            expires_s: None,
            channels: BTreeMap::new(),
        };
        for path in payloads {
            latest.add(path)?;
        }
        Ok(latest)
    }

    fn add(&mut self, path: &Path) -> Result<(), ChannelError> {
        let error = |e| ChannelError::Directory(path.to_owned(), e);
        let mut file = fs::File::open(path).map_err(error)?;
        let bytes = file.metadata().map_err(error)?.len();
        // Whoever makes the list need not have the keys of payloads: machines verify both.
        let manifest = read_head(&mut file).and_then(|(_, text)| Ok(Manifest::parse(&text)?));
        let manifest = manifest.map_err(|e| ChannelError::Payload(path.to_owned(), e))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let offer = Offer {
            version: manifest.version,
            payload: name.into_owned(),
            bytes,
        };
        let channel = Some(manifest.channel)
            .filter(|channel| !channel.is_empty())
            .unwrap_or_else(|| DEFAULT.to_owned());
        let architectures = self.channels.entry(channel).or_default();
        let is_newer = architectures
            .get(&manifest.architecture)
            .is_none_or(|present| present.version < offer.version);
        if is_newer {
            architectures.insert(manifest.architecture, offer);
        }
        Ok(())
    }

    /// Writes the list into `directory`, with its signature when there is a key; an older signature is removed otherwise.
    pub fn write(&self, directory: &Path, key: Option<&SecretKey>) -> Result<(), ChannelError> {
        let error = |e| ChannelError::Directory(directory.to_owned(), e);
        let mut text = serde_json::to_vec_pretty(self).map_err(|e| error(e.into()))?;
        text.push(b'\n');
        let replace = |name: &str, bytes: &[u8]| {
            let new = directory.join(format!(".{name}.new"));
            fs::write(&new, bytes)
                .and_then(|()| fs::rename(&new, directory.join(name)))
                .map_err(error)
        };
        replace(FILE, &text)?;
        match key {
            Some(key) => replace(SIGNATURE, key.sign(&text, "orlop latest.json").as_bytes()),
            None => match fs::remove_file(directory.join(SIGNATURE)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(error(e)),
                _ => Ok(()),
            },
        }
    }
}

/// The payloads (`*.update`) in a directory.
pub fn payloads(directory: &Path) -> Result<Vec<PathBuf>, ChannelError> {
    let error = |e| ChannelError::Directory(directory.to_owned(), e);
    let mut payloads = Vec::new();
    for entry in fs::read_dir(directory).map_err(error)? {
        let path = entry.map_err(error)?.path();
        if path.extension().is_some_and(|e| e == EXTENSION) {
            payloads.push(path);
        }
    }
    payloads.sort();
    Ok(payloads)
}
