//! What a channel's directory offers: `latest.json` (`docs/update-payload.md`).

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
use crate::url::Url;

/// The file's name.
pub const FILE: &str = "latest.json";

/// How payloads' names end.
pub const EXTENSION: &str = "update";

/// The channel of whoever names none.
pub const DEFAULT: &str = "stable";

const FORMAT: u32 = 1;

/// The longest `latest.json` in bytes.
const LONGEST: u64 = 1 << 20;

/// What a directory offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latest {
    /// 1.
    pub format: u32,
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

/// What `channel` of the directory at `url` offers for `architecture`, and where.
pub fn check(
    url: &Url,
    channel: &str,
    architecture: &str,
    patience: Patience,
) -> Result<(Offer, Url), ChannelError> {
    let url = url.as_directory().join(FILE).map_err(FetchError::Url)?;
    let text = fetch::get(&url, LONGEST, patience)?;
    let latest: Latest =
        serde_json::from_slice(&text).map_err(|e| ChannelError::Json(url.clone(), e))?;
    if latest.format != FORMAT {
        return Err(ChannelError::Format(url, latest.format));
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

/// Writes `latest.json` for the payloads (`*.update`) in `directory`: of each channel and architecture the newest version.
pub fn index(directory: &Path) -> Result<Latest, ChannelError> {
    let error = |e| ChannelError::Directory(directory.to_owned(), e);
    let mut latest = Latest {
        format: FORMAT,
        channels: BTreeMap::new(),
    };
    for entry in fs::read_dir(directory).map_err(error)? {
        let path = entry.map_err(error)?.path();
        let (Some(name), true) = (
            path.file_name().and_then(|name| name.to_str()),
            path.extension().is_some_and(|e| e == EXTENSION),
        ) else {
            continue;
        };
        let mut file = fs::File::open(&path).map_err(error)?;
        let bytes = file.metadata().map_err(error)?.len();
        // Whoever serves the directory need not have the keys: machines verify.
        let manifest = read_head(&mut file).and_then(|(_, text)| Ok(Manifest::parse(&text)?));
        let manifest = manifest.map_err(|e| ChannelError::Payload(path.clone(), e))?;
        let offer = Offer {
            version: manifest.version,
            payload: name.to_owned(),
            bytes,
        };
        let channel = Some(manifest.channel)
            .filter(|channel| !channel.is_empty())
            .unwrap_or_else(|| DEFAULT.to_owned());
        let architectures = latest.channels.entry(channel).or_default();
        let is_newer = architectures
            .get(&manifest.architecture)
            .is_none_or(|present| present.version < offer.version);
        if is_newer {
            architectures.insert(manifest.architecture, offer);
        }
    }
    let mut text = serde_json::to_vec_pretty(&latest).map_err(|e| error(e.into()))?;
    text.push(b'\n');
    let new = directory.join(format!(".{FILE}.new"));
    fs::write(&new, text)
        .and_then(|()| fs::rename(&new, directory.join(FILE)))
        .map_err(error)?;
    Ok(latest)
}
