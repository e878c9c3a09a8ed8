//! Makes small images from files at hand: for the demonstration, for tests, and wherever no registry is in reach.
//!
//! A [`Recipe`] is kept in memory as a whole; the same recipe gives the same bytes, hence the same digests, on every machine.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use oci_spec::image::{
    Arch, Config, ImageConfiguration, ImageConfigurationBuilder, Os, RootFsBuilder,
};
use serde_json::json;

use crate::decompress::Compression;
use crate::digest::{Algorithm, Digest};
use crate::tar::{Entry, Kind};
use crate::tar_writer::Writer;

/// Why an image cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is not one that the specification allows.
    #[error("the configuration of the image cannot be made")]
    Configuration(#[source] oci_spec::OciSpecError),
    /// A document cannot be made.
    #[error("cannot make the {what} of the image")]
    Document {
        /// Which one.
        what: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The archive or a blob cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A compression that is only read here.
    #[error("layers cannot be written as {0}")]
    Compression(Compression),
}

/// An image to be made.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Its name, as `docker load` shall show it.
    pub name: String,
    /// Command, environment, ports and so on.
    pub config: Config,
    /// Layers, lowest first.
    pub layers: Vec<Layer>,
    /// How layers are compressed; `docker save` archives never are.
    pub compression: Compression,
}

/// One layer to be made.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    entries: Vec<(Entry, Vec<u8>)>,
}

impl Layer {
    /// A layer with nothing in it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a regular file of root's.
    #[must_use]
    pub fn file(self, path: &str, mode: u32, data: impl Into<Vec<u8>>) -> Self {
        self.entry(
            Entry {
                mode,
                ..plain(path, Kind::File)
            },
            data,
        )
    }

    /// Adds a directory of root's.
    #[must_use]
    pub fn directory(self, path: &str, mode: u32) -> Self {
        self.entry(
            Entry {
                mode,
                ..plain(path, Kind::Directory)
            },
            [],
        )
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(
            Entry {
                mode: 0o777,
                link: target.into(),
                ..plain(path, Kind::Symlink)
            },
            [],
        )
    }

    /// Adds any entry as it is; nothing about it is checked.
    #[must_use]
    pub fn entry(mut self, entry: Entry, data: impl Into<Vec<u8>>) -> Self {
        self.entries.push((entry, data.into()));
        self
    }

    /// The layer as an uncompressed tar.
    #[must_use]
    pub fn to_tar(&self) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        for (entry, data) in &self.entries {
            // A vector takes whatever is written to it.
            let _ = writer.append(entry, data);
        }
        writer.finish().unwrap_or_default()
    }
}

/// An entry of root's with nothing set but what it is. Times are those of 1970, so that builds are repeatable.
#[must_use]
pub fn plain(path: &str, kind: Kind) -> Entry {
    Entry {
        path: path.into(),
        link: Vec::new(),
        kind,
        size: 0,
        mode: if kind == Kind::Directory {
            0o755
        } else {
            0o644
        },
        uid: 0,
        gid: 0,
        mtime_s: 0,
        mtime_ns: 0,
        device: (0, 0),
        xattrs: Vec::new(),
    }
}

impl Recipe {
    /// The configuration that goes with layers of these uncompressed tars.
    fn configuration(&self, tars: &[Vec<u8>]) -> Result<Vec<u8>, Error> {
        let diff_ids: Vec<String> = tars
            .iter()
            .map(|tar| Digest::of(Algorithm::Sha256, tar).to_string())
            .collect();
        let root = RootFsBuilder::default()
            .typ("layers")
            .diff_ids(diff_ids)
            .build()
            .map_err(Error::Configuration)?;
        let configuration: ImageConfiguration = ImageConfigurationBuilder::default()
            .created("1970-01-01T00:00:00Z")
            .architecture(Arch::Amd64)
            .os(Os::Linux)
            .config(self.config.clone())
            .rootfs(root)
            .build()
            .map_err(Error::Configuration)?;
        to_json("configuration", &configuration)
    }

    fn tars(&self) -> Vec<Vec<u8>> {
        self.layers.iter().map(Layer::to_tar).collect()
    }

    /// Writes what `docker save` would: `manifest.json`, the configuration, and a tar for each layer.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_docker_archive(&self, path: &Path) -> Result<(), Error> {
        let write = |source| Error::Write {
            path: path.to_owned(),
            source,
        };
        let tars = self.tars();
        let config = self.configuration(&tars)?;
        let config_name = format!("{}.json", Digest::of(Algorithm::Sha256, &config).hex());
        let members: Vec<String> = tars
            .iter()
            .map(|tar| format!("{}.tar", Digest::of(Algorithm::Sha256, tar).hex()))
            .collect();
        let manifest =
            json!([{ "Config": config_name, "RepoTags": [self.name], "Layers": members }]);
        let mut archive = Writer::new(io::BufWriter::new(fs::File::create(path).map_err(write)?));
        let mut append = |name: &str, data: &[u8]| {
            archive
                .append(&plain(name, Kind::File), data)
                .map_err(write)
        };
        for (name, tar) in members.iter().zip(&tars) {
            append(name, tar)?;
        }
        append(&config_name, &config)?;
        append("manifest.json", &to_json("manifest", &manifest)?)?;
        archive.finish().map_err(write)?;
        Ok(())
    }

    /// Writes an OCI image layout into `directory`, which is made if it is missing.
    ///
    /// # Errors
    /// When a file cannot be written, or the compression is one that is only read.
    pub fn write_oci_layout(&self, directory: &Path) -> Result<(), Error> {
        let blobs = directory.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(|source| Error::Write {
            path: blobs.clone(),
            source,
        })?;
        let put = |path: PathBuf, bytes: &[u8]| {
            fs::write(&path, bytes).map_err(|source| Error::Write {
                path: path.clone(),
                source,
            })
        };
        let put_blob = |bytes: &[u8]| {
            let digest = Digest::of(Algorithm::Sha256, bytes);
            put(blobs.join(digest.hex()), bytes).map(|()| (digest.to_string(), bytes.len()))
        };
        let tars = self.tars();
        let (digest, size) = put_blob(&self.configuration(&tars)?)?;
        let config = json!({ "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": size });
        let mut layers = Vec::new();
        for tar in &tars {
            let (bytes, suffix) = compress(tar, self.compression)?;
            let (digest, size) = put_blob(&bytes)?;
            let media_type = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
            layers.push(json!({ "mediaType": media_type, "digest": digest, "size": size }));
        }
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers });
        let (digest, size) = put_blob(&to_json("manifest", &manifest)?)?;
        let descriptor = json!({
            "mediaType": media_type,
            "digest": digest,
            "size": size,
            "platform": { "os": "linux", "architecture": "amd64" },
            "annotations": { "org.opencontainers.image.ref.name": self.name },
        });
        let index = json!({ "schemaVersion": 2, "manifests": [descriptor] });
        put(directory.join("index.json"), &to_json("index", &index)?)?;
        put(
            directory.join("oci-layout"),
            br#"{"imageLayoutVersion":"1.0.0"}"#,
        )
    }
}

fn to_json(what: &'static str, value: &impl serde::Serialize) -> Result<Vec<u8>, Error> {
    // Through a value, whose keys are sorted: the labels of a configuration come in no order of their own.
    serde_json::to_value(value)
        .and_then(|value| serde_json::to_vec(&value))
        .map_err(|source| Error::Document { what, source })
}

/// Compresses a layer; returns the suffix of its media type too. bzip2 has no media type, and is told by its bytes.
fn compress(tar: &[u8], compression: Compression) -> Result<(Vec<u8>, &'static str), Error> {
    let memory = |source| Error::Write {
        path: PathBuf::from("memory"),
        source,
    };
    match compression {
        Compression::None => Ok((tar.to_vec(), "")),
        Compression::Gzip => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(tar).map_err(memory)?;
            Ok((encoder.finish().map_err(memory)?, "+gzip"))
        }
        Compression::Zstd => {
            let level = ruzstd::encoding::CompressionLevel::Fastest;
            Ok((ruzstd::encoding::compress_to_vec(tar, level), "+zstd"))
        }
        Compression::Bzip2 => {
            let mut encoder =
                bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::default());
            encoder.write_all(tar).map_err(memory)?;
            Ok((encoder.finish().map_err(memory)?, ""))
        }
        Compression::Xz => Err(Error::Compression(compression)),
    }
}
