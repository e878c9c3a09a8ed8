//! Image references: names as people write them, in the one form that the store compares, and transports before paths.
//!
//! The grammar is that of the distribution project's `reference` package: `[domain/]path[:tag][@digest]`, where the first
//! part is a domain if it holds a dot or a colon or is `localhost`. Names without a domain are Docker Hub's, and those
//! without a slash lie under `library/` there.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::digest::Digest;

/// The domain of names that have none.
const DEFAULT_DOMAIN: &str = "docker.io";
/// The folder of Docker Hub's names that have no slash.
const DEFAULT_FOLDER: &str = "library/";
/// The tag of names that have neither tag nor digest.
const DEFAULT_TAG: &str = "latest";
/// The longest domain and path together (distribution: `NameTotalLengthMax`).
const MAX_NAME_BYTES: usize = 255;
/// The longest tag.
const MAX_TAG_BYTES: usize = 128;

/// Why a text is no reference.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is no image reference: {reason}")]
pub struct InvalidReference {
    text: String,
    reason: &'static str,
}

/// A full name: domain and path, and a tag or a digest or both.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry, with its port if it has one.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository in the registry.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag; `latest` when the text had neither tag nor digest.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest after `@`.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Domain and path, without tag and digest.
    #[must_use]
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The short form in which people know the name: no `docker.io/`, no `library/`.
    #[must_use]
    pub fn familiar(&self) -> String {
        let mut name = self.familiar_repository();
        if let Some(tag) = &self.tag {
            name = format!("{name}:{tag}");
        }
        if let Some(digest) = &self.digest {
            name = format!("{name}@{digest}");
        }
        name
    }

    /// The short form of [`Reference::repository`].
    #[must_use]
    pub fn familiar_repository(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return self.repository();
        }
        match self.path.strip_prefix(DEFAULT_FOLDER) {
            // A deeper path, or one that would read as a domain, must keep the folder to mean the same again.
            Some(rest) if !rest.contains('/') => rest.to_owned(),
            _ if is_domain(self.path.split('/').next().unwrap_or_default()) => self.repository(),
            _ => self.path.clone(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let invalid = |reason| InvalidReference {
            text: text.chars().take(300).collect(),
            reason,
        };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (
                rest,
                Some(
                    digest
                        .parse::<Digest>()
                        .map_err(|_| invalid("what follows the @ is no digest"))?,
                ),
            ),
            None => (text, None),
        };
        // A colon before the last slash belongs to the domain's port.
        let name_start = rest.rfind('/').map_or(0, |i| i + 1);
        let tag_at = rest
            .get(name_start..)
            .and_then(|last| last.rfind(':'))
            .map(|i| i + name_start);
        let (name, tag) = match tag_at.and_then(|at| Some((rest.get(..at)?, rest.get(at + 1..)?))) {
            Some((name, tag)) => (name, Some(tag)),
            None => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(invalid(
                "a tag has 1 to 128 letters, digits, _, . and -, and starts with none of the last two",
            ));
        }
        let (domain, path) = match name.split_once('/') {
            Some((first, path)) if is_domain(first) => (first, path.to_owned()),
            _ => (DEFAULT_DOMAIN, name.to_owned()),
        };
        let domain = if domain == "index.docker.io" {
            DEFAULT_DOMAIN
        } else {
            domain
        };
        if !is_valid_domain(domain) {
            return Err(invalid(
                "the part before the first slash is no host name with an optional port",
            ));
        }
        let path = if domain == DEFAULT_DOMAIN && !path.contains('/') {
            format!("{DEFAULT_FOLDER}{path}")
        } else {
            path
        };
        if !path.split('/').all(is_path_component) {
            return Err(invalid(
                "names are lower-case letters and digits, parted by one of . _ __ or dashes, and slashes",
            ));
        }
        if domain.len() + 1 + path.len() > MAX_NAME_BYTES {
            return Err(invalid("a name has at most 255 characters"));
        }
        let tag = tag
            .map(str::to_owned)
            .or_else(|| digest.is_none().then(|| DEFAULT_TAG.to_owned()));
        Ok(Self {
            domain: domain.to_owned(),
            path,
            tag,
            digest,
        })
    }
}

/// Whether the first part of a name with a slash is a domain rather than a folder of the default one.
fn is_domain(first: &str) -> bool {
    first == "localhost"
        || first.contains(['.', ':'])
        || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn is_valid_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) => {
                if address.is_empty()
                    || !address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':')
                {
                    return false;
                }
                return match port.strip_prefix(':') {
                    Some(port) => is_port(port),
                    None => port.is_empty(),
                };
            }
            None => return false,
        },
        None => match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        },
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.split('.').all(is_label) && port.is_none_or(is_port)
}

fn is_port(port: &str) -> bool {
    (1..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit())
}

/// Runs of letters and digits, parted by one dot, one or two underscores, or any number of dashes.
fn is_path_component(component: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    is_word(first)
        && is_word(last)
        && bytes
            .split(|&b| is_word(b))
            .all(|gap| matches!(gap, b"" | b"." | b"_" | b"__") || gap.iter().all(|&b| b == b'-'))
}

/// Whether `tag` may follow a colon.
pub(crate) fn is_tag(tag: &str) -> bool {
    (1..=MAX_TAG_BYTES).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// The store, under this name, or under an id where the text could be one.
    Store(String),
    /// A `docker save` archive, `docker-archive:PATH[:NAME]`.
    DockerArchive {
        /// The file.
        path: PathBuf,
        /// Which of its images; needed when it holds several.
        name: Option<String>,
    },
    /// An OCI layout: a directory (`oci:PATH[:TAG]`) or a tar of one (`oci-archive:PATH[:TAG]`).
    OciLayout {
        /// The directory or file.
        path: PathBuf,
        /// Which of its images (`org.opencontainers.image.ref.name`); needed when it holds several.
        tag: Option<String>,
    },
}

impl Location {
    /// Takes a transport off the front of `text`. Paths end at the first colon, as in other tools.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let with_path = |rest: &str| match rest.split_once(':') {
            Some((path, selector)) if !selector.is_empty() => {
                (PathBuf::from(path), Some(selector.to_owned()))
            }
            Some((path, _)) => (PathBuf::from(path), None),
            None => (PathBuf::from(rest), None),
        };
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            let (path, name) = with_path(rest);
            return Self::DockerArchive { path, name };
        }
        if let Some(rest) = text
            .strip_prefix("oci-archive:")
            .or_else(|| text.strip_prefix("oci:"))
        {
            let (path, tag) = with_path(rest);
            return Self::OciLayout { path, tag };
        }
        // Nothing is pulled yet: a registry's name is looked up in the store like one without the transport.
        Self::Store(text.strip_prefix("docker://").unwrap_or(text).to_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn full(text: &str) -> String {
        text.parse::<Reference>()
            .map_or_else(|err| err.to_string(), |r| r.to_string())
    }

    #[test]
    fn short_names_get_the_same_defaults_as_everywhere() {
        assert_eq!(full("web"), "docker.io/library/web:latest");
        assert_eq!(full("me/web:1.2"), "docker.io/me/web:1.2");
        assert_eq!(full("localhost/web"), "localhost/web:latest");
        assert_eq!(full("localhost:5000/web"), "localhost:5000/web:latest");
        assert_eq!(full("quay.io/a/b__c/d-e:v1"), "quay.io/a/b__c/d-e:v1");
        assert_eq!(full("index.docker.io/web"), "docker.io/library/web:latest");
        assert_eq!(full("[fd00::1]:5000/a"), "[fd00::1]:5000/a:latest");
        let digest = format!("sha256:{}", "0".repeat(64));
        assert_eq!(
            full(&format!("web@{digest}")),
            format!("docker.io/library/web@{digest}")
        );
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "",
            ":",
            "/",
            "a//b",
            "Web",
            "web:",
            "web:-a",
            "a..b",
            "a___b",
            "-a",
            "web@sha256:12",
            "a/../b",
        ] {
            assert!(
                text.parse::<Reference>().is_err(),
                "{text:?} became {}",
                full(text)
            );
        }
    }

    #[test]
    fn a_transport_names_a_path_and_perhaps_one_image_in_it() {
        let archive = |path: &str, name: Option<&str>| Location::DockerArchive {
            path: path.into(),
            name: name.map(str::to_owned),
        };
        assert_eq!(
            Location::parse("docker-archive:/a/b.tar"),
            archive("/a/b.tar", None)
        );
        assert_eq!(
            Location::parse("docker-archive:/a/b.tar:web:1"),
            archive("/a/b.tar", Some("web:1"))
        );
        assert_eq!(
            Location::parse("oci:/l:v1"),
            Location::OciLayout {
                path: "/l".into(),
                tag: Some("v1".into())
            }
        );
        assert_eq!(
            Location::parse("docker://web"),
            Location::Store("web".into())
        );
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_read_back_the_same(text in "\\PC{0,60}|[a-zA-Z0-9._:/@\\[\\]-]{0,60}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(&reference.to_string().parse::<Reference>().unwrap(), &reference);
                prop_assert_eq!(&reference.familiar().parse::<Reference>().unwrap(), &reference);
            }
        }

        #[test]
        fn well_formed_names_are_read_part_by_part(
            domain in "([a-z0-9]{1,8}\\.){1,3}[a-z]{2,4}(:[1-9][0-9]{0,3})?",
            path in "[a-z0-9]{1,8}((\\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}(/[a-z0-9]{1,8}){0,3}",
            tag in "[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}",
        ) {
            prop_assume!(domain != DEFAULT_DOMAIN && domain != "index.docker.io");
            let reference: Reference = format!("{domain}/{path}:{tag}").parse().unwrap();
            prop_assert_eq!(reference.domain(), &domain);
            prop_assert_eq!(reference.path(), &path);
            prop_assert_eq!(reference.tag(), Some(tag.as_str()));
        }
    }
}
