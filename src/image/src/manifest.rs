//! What an archive or a layout says it holds: images with their configuration and where each layer lies.
//!
//! Two forms are read: `manifest.json` of `docker save` (old: `<id>/layer.tar`; new: beside an OCI layout in the same tar),
//! and the OCI image layout (image-spec, image-layout.md). All documents are checked against the digest and size that
//! named them, as received, before anything in them is believed.

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;

use crate::digest::{Algorithm, Digest};
use crate::reference::Reference;
use crate::source::{self, Source};

/// The largest index, manifest or configuration, in bytes (the distribution spec's limit for manifests).
const MAX_DOCUMENT_BYTES: u64 = 4 * 1024 * 1024;
/// The most layers of an image: what Docker allows, and what fits the kernel's overlay.
const MAX_LAYERS: usize = 127;
/// The most images in one archive.
const MAX_IMAGES: usize = 1000;
/// How deep indexes may nest.
const MAX_INDEX_DEPTH: u32 = 4;

/// What is wrong with the documents.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A document cannot be read.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// Neither `manifest.json` nor `index.json` is there.
    #[error(
        "{path} holds neither a docker save archive (manifest.json) nor an OCI layout (index.json)"
    )]
    NoManifest {
        /// The archive or directory.
        path: String,
    },
    /// A document is not the JSON it should be.
    #[error("{name:?} of {path} is malformed")]
    Malformed {
        /// The archive or directory.
        path: String,
        /// The member.
        name: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A document contradicts itself or the others.
    #[error("{name:?} of {path}: {reason}")]
    Invalid {
        /// The archive or directory.
        path: String,
        /// The member.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A document has another digest than the one that names it.
    #[error("{name:?} of {path} does not match its digest: expected {expected}, got {got}")]
    DigestMismatch {
        /// The archive or directory.
        path: String,
        /// The member.
        name: String,
        /// The digest by which it was named.
        expected: Digest,
        /// The digest of its bytes.
        got: Digest,
    },
    /// A blob has another size than the descriptor that names it says.
    #[error("{name:?} of {path} has the wrong size: expected {expected} bytes, got {got}")]
    SizeMismatch {
        /// The archive or directory.
        path: String,
        /// The member.
        name: String,
        /// Bytes by the descriptor.
        expected: u64,
        /// Bytes there are.
        got: u64,
    },
}

/// One layer as it lies in a source.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The member that holds it, perhaps compressed.
    pub member: String,
    /// Digest of the member's bytes, where a manifest gives one.
    pub blob: Option<Digest>,
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
}

/// One image in a source.
#[derive(Debug, Clone)]
pub struct Found {
    /// Digest of the configuration.
    pub id: Digest,
    /// Digest of the OCI manifest, where there is one.
    pub manifest: Option<Digest>,
    /// Names that the source gives it.
    pub names: Vec<Reference>,
    /// `org.opencontainers.image.ref.name`, whatever it means.
    pub ref_name: Option<String>,
    /// The configuration's bytes as received.
    pub config_bytes: Vec<u8>,
    /// The same, parsed.
    pub config: ImageConfiguration,
    /// Lowest first.
    pub layers: Vec<Layer>,
}

impl Found {
    /// A name for messages.
    #[must_use]
    pub fn label(&self) -> String {
        match (self.names.first(), &self.ref_name) {
            (Some(name), _) => name.familiar(),
            (None, Some(name)) => name.clone(),
            (None, None) => self.id.to_string(),
        }
    }
}

/// Which of the two forms to read where an archive holds both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `manifest.json` if it is there, else `index.json`.
    Any,
    /// `manifest.json`.
    Docker,
    /// `index.json`.
    Oci,
}

/// All images of `source` for this machine's platform.
///
/// # Errors
/// When a document is missing, malformed or not what its digest says.
pub fn read(source: &Source, form: Form) -> Result<Vec<Found>, Error> {
    let documents = Documents { source };
    if form != Form::Oci && source.contains("manifest.json") {
        return documents.docker();
    }
    if form != Form::Docker && source.contains("index.json") {
        return documents.oci();
    }
    Err(Error::NoManifest {
        path: documents.path(),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OciLayoutMarker {
    image_layout_version: String,
}

/// An index or a manifest: which one it is, is told by what it has.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OciDocument {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
}

#[derive(Deserialize, Clone)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Deserialize, Clone)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

impl Descriptor {
    fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }

    fn is_for_this_machine(&self) -> bool {
        self.platform
            .as_ref()
            .is_none_or(|p| p.os == "linux" && p.architecture == "amd64")
    }

    fn member(&self) -> String {
        format!(
            "blobs/{}/{}",
            self.digest.algorithm().as_str(),
            self.digest.hex()
        )
    }
}

fn is_index(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json"
    )
}

fn is_manifest(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v2+json"
    )
}

fn is_layer(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.oci.image.layer.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.")
}

struct Documents<'a> {
    source: &'a Source,
}

impl Documents<'_> {
    fn path(&self) -> String {
        self.source.path().display().to_string()
    }

    fn invalid(&self, name: &str, reason: impl Into<String>) -> Error {
        Error::Invalid {
            path: self.path(),
            name: name.to_owned(),
            reason: reason.into(),
        }
    }

    fn parse<T: for<'de> Deserialize<'de>>(&self, name: &str, bytes: &[u8]) -> Result<T, Error> {
        serde_json::from_slice(bytes).map_err(|source| Error::Malformed {
            path: self.path(),
            name: name.to_owned(),
            source,
        })
    }

    /// A document that must have `digest`, and `size` where that is known.
    fn verified(&self, name: &str, digest: &Digest, size: Option<u64>) -> Result<Vec<u8>, Error> {
        let bytes = self.source.document(name, MAX_DOCUMENT_BYTES)?;
        let got = bytes.len() as u64;
        if let Some(expected) = size.filter(|&expected| expected != got) {
            return Err(Error::SizeMismatch {
                path: self.path(),
                name: name.to_owned(),
                expected,
                got,
            });
        }
        let got = Digest::of(digest.algorithm(), &bytes);
        if got != *digest {
            let expected = digest.clone();
            return Err(Error::DigestMismatch {
                path: self.path(),
                name: name.to_owned(),
                expected,
                got,
            });
        }
        Ok(bytes)
    }

    fn docker(&self) -> Result<Vec<Found>, Error> {
        let name = "manifest.json";
        let images: Vec<DockerImage> =
            self.parse(name, &self.source.document(name, MAX_DOCUMENT_BYTES)?)?;
        if images.is_empty() || images.len() > MAX_IMAGES {
            return Err(self.invalid(name, format!("it lists {} images", images.len())));
        }
        images
            .into_iter()
            .map(|image| self.docker_image(image))
            .collect()
    }

    fn docker_image(&self, image: DockerImage) -> Result<Found, Error> {
        let config_bytes = match digest_in_name(&image.config) {
            Some(digest) => self.verified(&image.config, &digest, None)?,
            None => self.source.document(&image.config, MAX_DOCUMENT_BYTES)?,
        };
        let id = match blob_digest(&image.config) {
            Some(digest) => digest,
            None => Digest::of(Algorithm::Sha256, &config_bytes),
        };
        let names = image
            .repo_tags
            .unwrap_or_default()
            .iter()
            .map(|tag| {
                tag.parse()
                    .map_err(|err| self.invalid("manifest.json", format!("{err}")))
            })
            .collect::<Result<_, _>>()?;
        let members = image.layers.unwrap_or_default();
        let layers = members
            .into_iter()
            .map(|member| (blob_digest(&member), member))
            .collect();
        self.found(&image.config, id, None, names, None, config_bytes, layers)
    }

    /// Checks that configuration and layers belong together.
    #[expect(
        clippy::too_many_arguments,
        reason = "the one place where the parts of an image meet"
    )]
    fn found(
        &self,
        config_name: &str,
        id: Digest,
        manifest: Option<Digest>,
        names: Vec<Reference>,
        ref_name: Option<String>,
        config_bytes: Vec<u8>,
        layers: Vec<(Option<Digest>, String)>,
    ) -> Result<Found, Error> {
        let config: ImageConfiguration = self.parse(config_name, &config_bytes)?;
        let platform = format!("{}/{}", config.os(), config.architecture());
        // Some builders leave the fields empty; what is there must be right, or the first program fails for no clear reason.
        if !matches!(platform.as_str(), "linux/amd64" | "linux/" | "/amd64" | "/") {
            let reason = format!("the image is for {platform}, and this machine is linux/amd64");
            return Err(self.invalid(config_name, reason));
        }
        let diff_ids = config.rootfs().diff_ids();
        if diff_ids.len() != layers.len() {
            let reason = format!(
                "it names {} layers, and the manifest {}",
                diff_ids.len(),
                layers.len()
            );
            return Err(self.invalid(config_name, reason));
        }
        if layers.is_empty() || layers.len() > MAX_LAYERS {
            return Err(self.invalid(
                config_name,
                format!("{} layers; 1 to {MAX_LAYERS} are possible", layers.len()),
            ));
        }
        let layers = diff_ids
            .iter()
            .zip(layers)
            .map(|(diff_id, (blob, member))| {
                let diff_id = diff_id
                    .parse()
                    .map_err(|err| self.invalid(config_name, format!("{err}")))?;
                Ok(Layer {
                    member,
                    blob,
                    diff_id,
                })
            })
            .collect::<Result<_, Error>>()?;
        Ok(Found {
            id,
            manifest,
            names,
            ref_name,
            config_bytes,
            config,
            layers,
        })
    }

    fn oci(&self) -> Result<Vec<Found>, Error> {
        // The marker is required in a layout; some builders' tars leave it out, and nothing else depends on it.
        if self.source.contains("oci-layout") {
            let bytes = self.source.document("oci-layout", MAX_DOCUMENT_BYTES)?;
            let marker: OciLayoutMarker = self.parse("oci-layout", &bytes)?;
            if !marker.image_layout_version.starts_with("1.") {
                let reason = format!(
                    "layout version {:?} is not known",
                    marker.image_layout_version
                );
                return Err(self.invalid("oci-layout", reason));
            }
        }
        let bytes = self.source.document("index.json", MAX_DOCUMENT_BYTES)?;
        let mut found = Vec::new();
        let mut skipped = Vec::new();
        let mut budget = MAX_IMAGES;
        self.index(
            "index.json",
            &bytes,
            None,
            0,
            &mut budget,
            &mut found,
            &mut skipped,
        )?;
        if found.is_empty() {
            let reason = match skipped.is_empty() {
                true => "it lists no image".to_owned(),
                false => format!("no image for linux/amd64, only {}", skipped.join(", ")),
            };
            return Err(self.invalid("index.json", reason));
        }
        Ok(found)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the state of one walk over nested indexes"
    )]
    fn index(
        &self,
        name: &str,
        bytes: &[u8],
        named_by: Option<&Descriptor>,
        depth: u32,
        budget: &mut usize,
        found: &mut Vec<Found>,
        skipped: &mut Vec<String>,
    ) -> Result<(), Error> {
        let document: OciDocument = self.parse(name, bytes)?;
        if document.config.is_some() || document.layers.is_some() {
            return Err(self.invalid(name, "it is an index and a manifest at once"));
        }
        self.check_header(name, &document, named_by)?;
        for descriptor in document.manifests.unwrap_or_default() {
            *budget = budget
                .checked_sub(1)
                .ok_or_else(|| self.invalid(name, "too many images"))?;
            if !descriptor.is_for_this_machine() {
                skipped.extend(
                    descriptor
                        .platform
                        .map(|p| format!("{}/{}", p.os, p.architecture)),
                );
                continue;
            }
            let member = descriptor.member();
            // A nested index passes the name it was given on to what it holds.
            let mut descriptor = descriptor;
            if descriptor.annotations.is_none() {
                descriptor.annotations = named_by.and_then(|d| d.annotations.clone());
            }
            if is_index(&descriptor.media_type) {
                if depth >= MAX_INDEX_DEPTH {
                    return Err(
                        self.invalid(name, format!("indexes nest deeper than {MAX_INDEX_DEPTH}"))
                    );
                }
                let bytes = self.verified(&member, &descriptor.digest, Some(descriptor.size))?;
                self.index(
                    &member,
                    &bytes,
                    Some(&descriptor),
                    depth + 1,
                    budget,
                    found,
                    skipped,
                )?;
            } else if is_manifest(&descriptor.media_type) {
                found.extend(self.oci_image(&descriptor)?);
            }
            // Any other media type is somebody else's artefact, to be passed over (image-index.md, "mediaType").
        }
        Ok(())
    }

    /// One document must not be read as two things (CVE-2021-41190).
    fn check_header(
        &self,
        name: &str,
        document: &OciDocument,
        named_by: Option<&Descriptor>,
    ) -> Result<(), Error> {
        if document.schema_version != 2 {
            return Err(self.invalid(
                name,
                format!("schemaVersion {} is not known", document.schema_version),
            ));
        }
        if let (Some(own), Some(descriptor)) = (&document.media_type, named_by)
            && *own != descriptor.media_type
        {
            return Err(self.invalid(
                name,
                format!(
                    "it calls itself {own:?}, and its index {:?}",
                    descriptor.media_type
                ),
            ));
        }
        Ok(())
    }

    /// `None` for an artefact that only looks like an image.
    fn oci_image(&self, descriptor: &Descriptor) -> Result<Option<Found>, Error> {
        let member = descriptor.member();
        let bytes = self.verified(&member, &descriptor.digest, Some(descriptor.size))?;
        let document: OciDocument = self.parse(&member, &bytes)?;
        if document.manifests.is_some() {
            return Err(self.invalid(&member, "it is an index and a manifest at once"));
        }
        self.check_header(&member, &document, Some(descriptor))?;
        let config = document
            .config
            .ok_or_else(|| self.invalid(&member, "it has no config"))?;
        if !matches!(
            config.media_type.as_str(),
            "application/vnd.oci.image.config.v1+json"
                | "application/vnd.docker.container.image.v1+json"
        ) {
            return Ok(None);
        }
        let layers = document.layers.unwrap_or_default();
        if let Some(other) = layers.iter().find(|layer| !is_layer(&layer.media_type)) {
            return Err(self.invalid(
                &member,
                format!("a layer of type {:?} is not supported", other.media_type),
            ));
        }
        let config_name = config.member();
        let config_bytes = self.verified(&config_name, &config.digest, Some(config.size))?;
        for layer in &layers {
            let name = layer.member();
            let got = self.source.section(&name)?.len();
            if got != layer.size {
                return Err(Error::SizeMismatch {
                    path: self.path(),
                    name,
                    expected: layer.size,
                    got,
                });
            }
        }
        let layers = layers
            .into_iter()
            .map(|layer| (Some(layer.digest.clone()), layer.member()))
            .collect();
        let ref_name = descriptor
            .annotation("org.opencontainers.image.ref.name")
            .map(str::to_owned);
        let names = name_of(descriptor).into_iter().collect();
        self.found(
            &config_name,
            config.digest.clone(),
            Some(descriptor.digest.clone()),
            names,
            ref_name,
            config_bytes,
            layers,
        )
        .map(Some)
    }
}

/// The name that an index gives an image. `ref.name` may be a whole name or, as umoci and buildx write it, only a tag:
/// what looks like a version names nothing.
fn name_of(descriptor: &Descriptor) -> Option<Reference> {
    if let Some(name) = descriptor.annotation("io.containerd.image.name") {
        return name.parse().ok();
    }
    let name = descriptor.annotation("org.opencontainers.image.ref.name")?;
    let version = name.strip_prefix('v').unwrap_or(name);
    let is_tag = name == "latest"
        || (version.starts_with(|c: char| c.is_ascii_digit()) && !name.contains(['/', ':']));
    if is_tag { None } else { name.parse().ok() }
}

/// The digest of `blobs/<algorithm>/<hex>`.
fn blob_digest(member: &str) -> Option<Digest> {
    let (algorithm, hex) = member.strip_prefix("blobs/")?.split_once('/')?;
    format!("{algorithm}:{hex}").parse().ok()
}

/// The digest that the name of a configuration promises: a blob's, or `<hex>.json` as `docker save` has always written.
fn digest_in_name(member: &str) -> Option<Digest> {
    blob_digest(member).or_else(|| {
        format!("sha256:{}", member.strip_suffix(".json")?)
            .parse()
            .ok()
    })
}
