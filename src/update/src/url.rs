//! `http` URLs (RFC 3986), as far as downloads need them.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Where something is on the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// A name or an address; an IPv6 address without its brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Path and query, which begin with a slash.
    pub target: String,
}

/// Why a text is no URL for a download.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UrlError {
    /// Encrypted transport.
    #[error("{0}: https is not supported; a payload is signed, so http will do")]
    Https(String),
    /// Something else.
    #[error("{0:?} is no http:// URL")]
    Form(String),
}

impl Url {
    /// What `reference` means on a page at this URL: a URL itself, an absolute path, or a path relative to this one's directory.
    pub fn join(&self, reference: &str) -> Result<Self, UrlError> {
        if reference.contains("://") {
            return reference.parse();
        }
        let path = self.target.split('?').next().unwrap_or_default();
        let directory = path
            .rfind('/')
            .and_then(|at| path.get(..=at))
            .unwrap_or("/");
        let target = match reference.starts_with('/') {
            true => reference.to_owned(),
            false => format!("{directory}{reference}"),
        };
        is_target(&target)
            .then(|| Self {
                target,
                ..self.clone()
            })
            .ok_or_else(|| UrlError::Form(reference.to_owned()))
    }

    /// The URL with a slash at its end, so that names can be joined to it.
    #[must_use]
    pub fn as_directory(&self) -> Self {
        let mut url = self.clone();
        if !url.target.ends_with('/') {
            url.target.push('/');
        }
        url
    }

    /// Host and port as a request's `Host` has them (RFC 9110 §7.2).
    #[must_use]
    pub fn authority(&self) -> String {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        if self.port == 80 {
            host
        } else {
            format!("{host}:{}", self.port)
        }
    }
}

/// No blanks and nothing that would end a request's line.
fn is_target(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

impl FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let error = || UrlError::Form(text.chars().take(200).collect());
        let (scheme, rest) = text.split_once("://").ok_or_else(error)?;
        if scheme.eq_ignore_ascii_case("https") {
            return Err(UrlError::Https(text.chars().take(200).collect()));
        }
        if !scheme.eq_ignore_ascii_case("http") {
            return Err(error());
        }
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at_checked(end).ok_or_else(error)?;
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or_else(error)?;
                (host, port.strip_prefix(':'))
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:%".contains(&byte);
        if host.is_empty() || host.len() > 255 || !host.bytes().all(is_host) || !is_target(target) {
            return Err(error());
        }
        Ok(Self {
            host: host.to_owned(),
            port: port
                .filter(|port| !port.is_empty())
                .map_or(Ok(80), str::parse)
                .map_err(|_| error())?,
            target: if target.starts_with('/') {
                target.to_owned()
            } else {
                format!("/{target}")
            },
        })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority(), self.target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn urls_are_taken_apart_and_joined() {
        let url: Url = "http://updates.example:8080/orlop/latest.json?x=1#y"
            .parse()
            .unwrap();
        assert_eq!(
            (url.host.as_str(), url.port, url.target.as_str()),
            ("updates.example", 8080, "/orlop/latest.json?x=1")
        );
        assert_eq!(
            url.join("a.update").unwrap().to_string(),
            "http://updates.example:8080/orlop/a.update"
        );
        assert_eq!(
            url.join("/a").unwrap().to_string(),
            "http://updates.example:8080/a"
        );
        assert_eq!(
            url.join("http://other/a").unwrap().to_string(),
            "http://other/a"
        );
        assert!(url.join("a b").is_err());
        assert_eq!(
            "http://[fd00::1]:81".parse::<Url>().unwrap().to_string(),
            "http://[fd00::1]:81/"
        );
        assert_eq!(
            "http://h/d"
                .parse::<Url>()
                .unwrap()
                .as_directory()
                .to_string(),
            "http://h/d/"
        );
        assert!(matches!(
            "https://h/".parse::<Url>(),
            Err(UrlError::Https(_))
        ));
        for text in [
            "",
            "h",
            "ftp://h",
            "http://",
            "http://h:x/",
            "http://u@h/",
            "http://h/a b",
            "http://h\r\nX: y/",
            "http://[::1",
        ] {
            assert!(text.parse::<Url>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(http://)?[\\[\\]:/?#a.é0-9 ]{0,20}", reference in any::<String>()) {
            if let Ok(url) = text.parse::<Url>() {
                prop_assert_eq!(url.to_string().parse::<Url>().unwrap(), url.clone());
                let _ = url.join(&reference);
            }
        }
    }
}
