//! Names of units, and the escaping of paths in them (`systemd.unit(5)`, "String escaping for inclusion in unit names").

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// The longest name, suffix included, in bytes.
pub const MAX_NAME_BYTES: usize = 255;

/// What a unit is, by its suffix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum UnitType {
    /// `.service`
    Service,
    /// `.target`
    Target,
    /// `.socket`
    Socket,
    /// `.timer`
    Timer,
    /// `.path`
    Path,
    /// `.mount`
    Mount,
    /// `.automount`
    Automount,
    /// `.swap`
    Swap,
    /// `.device`
    Device,
    /// `.slice`
    Slice,
    /// `.scope`
    Scope,
    /// `.container`: Quadlet's file for a service; [`UnitName::parse`] turns it into the service's name.
    Container,
}

impl UnitType {
    const SUFFIXES: &[(&'static str, Self)] = &[
        ("service", Self::Service),
        ("target", Self::Target),
        ("socket", Self::Socket),
        ("timer", Self::Timer),
        ("path", Self::Path),
        ("mount", Self::Mount),
        ("automount", Self::Automount),
        ("swap", Self::Swap),
        ("device", Self::Device),
        ("slice", Self::Slice),
        ("scope", Self::Scope),
        ("container", Self::Container),
    ];

    /// The type that `suffix`, without its dot, stands for.
    #[must_use]
    pub fn from_suffix(suffix: &str) -> Option<Self> {
        Self::SUFFIXES
            .iter()
            .find(|(s, _)| *s == suffix)
            .map(|(_, kind)| *kind)
    }

    /// The suffix without its dot.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        Self::SUFFIXES
            .iter()
            .find(|(_, kind)| *kind == self)
            .map_or("service", |(s, _)| *s)
    }
}

/// Why a text is no unit name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No suffix, or one that no unit type has.
    #[error("{0:?} does not end in a unit type such as .service")]
    Suffix(String),
    /// Longer than [`MAX_NAME_BYTES`].
    #[error("the name is {0} bytes long, the limit is {MAX_NAME_BYTES}")]
    Length(usize),
    /// A character that names cannot hold, or nothing before the suffix.
    #[error("{0:?} is not a valid unit name")]
    Character(String),
}

/// A valid unit name such as `web@1.service`; a clone costs one counter.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UnitName(Arc<str>);

impl UnitName {
    /// Checks `text`; `NAME.container` becomes `NAME.service`, the unit that it describes.
    ///
    /// # Errors
    /// [`NameError`] says which rule is broken.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.len() > MAX_NAME_BYTES {
            return Err(NameError::Length(text.len()));
        }
        let Some((stem, suffix)) = text.rsplit_once('.') else {
            return Err(NameError::Suffix(text.to_owned()));
        };
        let Some(kind) = UnitType::from_suffix(suffix) else {
            return Err(NameError::Suffix(text.to_owned()));
        };
        let valid = |b: u8| {
            b.is_ascii_alphanumeric() || matches!(b, b':' | b'-' | b'_' | b'.' | b'\\' | b'@')
        };
        if stem.is_empty() || stem.starts_with('@') || !stem.bytes().all(valid) {
            return Err(NameError::Character(text.to_owned()));
        }
        if kind == UnitType::Container {
            return Ok(Self(format!("{stem}.service").into()));
        }
        Ok(Self(text.into()))
    }

    /// What stands for a unit that does not exist.
    pub(crate) fn unknown() -> Self {
        Self("unknown.target".into())
    }

    /// The whole name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name without its suffix (`%N`).
    #[must_use]
    pub fn stem(&self) -> &str {
        self.0.rsplit_once('.').map_or(&self.0, |(stem, _)| stem)
    }

    /// The unit's type.
    #[must_use]
    pub fn kind(&self) -> UnitType {
        self.0
            .rsplit_once('.')
            .and_then(|(_, s)| UnitType::from_suffix(s))
            .unwrap_or(UnitType::Service)
    }

    /// What stands before the first `@`, or the stem (`%p`).
    #[must_use]
    pub fn prefix(&self) -> &str {
        let stem = self.stem();
        stem.split_once('@').map_or(stem, |(prefix, _)| prefix)
    }

    /// What stands between the first `@` and the suffix (`%i`); `None` without `@`, empty for a template.
    #[must_use]
    pub fn instance(&self) -> Option<&str> {
        self.stem().split_once('@').map(|(_, instance)| instance)
    }

    /// Whether this is `NAME@.TYPE`, which cannot be started.
    #[must_use]
    pub fn is_template(&self) -> bool {
        self.instance() == Some("")
    }

    /// The template that an instance is made from.
    #[must_use]
    pub fn template(&self) -> Option<Self> {
        match self.instance() {
            None | Some("") => None,
            Some(_) => Some(Self(
                format!("{}@.{}", self.prefix(), self.kind().suffix()).into(),
            )),
        }
    }

    /// The instance of a template.
    ///
    /// # Errors
    /// When the instance holds what a name cannot, or the name gets too long.
    pub fn with_instance(&self, instance: &str) -> Result<Self, NameError> {
        Self::parse(&format!(
            "{}@{instance}.{}",
            self.prefix(),
            self.kind().suffix()
        ))
    }
}

impl fmt::Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Borrow<str> for UnitName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for UnitName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for UnitName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

/// Escapes a text for use in a name: `/` becomes `-`, what names cannot hold becomes `\xHH`.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'/' => out.push('-'),
            b'.' if index == 0 => out.push_str("\\x2e"),
            b':' | b'_' | b'.' => out.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => out.push(char::from(byte)),
            _ => {
                out.push_str("\\x");
                for digit in [byte >> 4, byte & 0xf] {
                    out.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
                }
            }
        }
    }
    out
}

/// Escapes a path: slashes at the ends and double ones go, the root is `-`.
#[must_use]
pub fn escape_path(path: &str) -> String {
    let plain: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    if plain.is_empty() {
        return "-".to_owned();
    }
    escape(&plain.join("/"))
}

/// Undoes [`escape`]; `None` where an escape is broken or the result is not UTF-8 or holds NUL.
#[must_use]
pub fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'-' => out.push(b'/'),
            b'\\' => {
                if bytes.next() != Some(b'x') {
                    return None;
                }
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                let byte = u8::try_from((high << 4) | low).ok()?;
                if byte == 0 {
                    return None;
                }
                out.push(byte);
            }
            _ => out.push(byte),
        }
    }
    String::from_utf8(out).ok()
}

/// Undoes [`escape_path`]: the result starts with a slash.
#[must_use]
pub fn unescape_path(text: &str) -> Option<String> {
    if text == "-" {
        return Some("/".to_owned());
    }
    unescape(text).map(|path| format!("/{}", path.trim_start_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_instance_lies_between_the_first_at_and_the_suffix() {
        let name = UnitName::parse("a-b@c@d.e.service").unwrap();
        assert_eq!(
            (name.prefix(), name.instance(), name.kind()),
            ("a-b", Some("c@d.e"), UnitType::Service)
        );
        assert_eq!(name.template().unwrap().as_str(), "a-b@.service");
        assert_eq!(name.stem(), "a-b@c@d.e");
    }

    #[test]
    fn names_that_could_leave_the_directory_are_refused() {
        for bad in [
            "../x.service",
            "a/b.service",
            ".service",
            "@x.service",
            "x",
            "x.unit",
            "x y.service",
            "",
        ] {
            assert!(UnitName::parse(bad).is_err(), "{bad}");
        }
        assert!(UnitName::parse(&format!("{}.service", "a".repeat(248))).is_err());
        assert!(UnitName::parse(&format!("{}.service", "a".repeat(247))).is_ok());
    }

    #[test]
    fn a_container_file_names_its_service() {
        assert_eq!(
            UnitName::parse("web.container").unwrap().as_str(),
            "web.service"
        );
    }

    #[test]
    fn paths_are_escaped_as_systemd_does() {
        for (path, name) in [
            ("/foo//bar/baz/", "foo-bar-baz"),
            ("/", "-"),
            ("/.cache/a-b", "\\x2ecache-a\\x2db"),
            ("/var/lib/my dir", "var-lib-my\\x20dir"),
        ] {
            assert_eq!(escape_path(path), name);
        }
        assert_eq!(unescape_path("foo-bar\\x2dbaz").unwrap(), "/foo/bar-baz");
        assert_eq!(unescape("a\\x0"), None);
        assert_eq!(unescape("a\\x00"), None);
    }

    proptest::proptest! {
        #[test]
        fn escaping_is_undone(text in "[^\u{0}]{0,40}") {
            proptest::prop_assert_eq!(unescape(&escape(&text)).unwrap(), text);
        }
    }
}
