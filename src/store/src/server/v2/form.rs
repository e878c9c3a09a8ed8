//! The parameters of a v2 request: the form in the body, then the query.

use axum::http::Method;

use crate::v2::watch::Watch;
use crate::v2::{
    INDEX_NOT_A_NUMBER, INVALID_FIELD, Kind, PREV_VALUE_REQUIRED, REFRESH_TTL_REQUIRED,
    REFRESH_VALUE, Request, TTL_NOT_A_NUMBER, V2Error, clean,
};

/// Names and values, the first of a name counts.
#[derive(Debug, Default)]
pub(super) struct Form(Vec<(String, String)>);

/// Decodes percent signs, and plus signs in forms. What is not UTF-8 is replaced.
pub(super) fn decode(text: &str, form: bool) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        let hex = |byte: &u8| (*byte as char).to_digit(16);
        match (first, after) {
            (b'%', [high, low, after @ ..]) => {
                if let (Some(high), Some(low)) = (hex(high), hex(low)) {
                    out.push((high * 16 + low) as u8);
                    rest = after;
                } else {
                    out.push(b'%');
                }
            }
            (b'+', _) if form => out.push(b' '),
            (byte, _) => out.push(*byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl Form {
    pub(super) fn new(body: &[u8], query: &str) -> Self {
        let body = String::from_utf8_lossy(body);
        let pairs = body.split('&').chain(query.split('&'));
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name, true), decode(value, true))
        };
        Self(pairs.filter(|p| !p.is_empty()).map(pair).collect())
    }

    fn get(&self, name: &str) -> Option<&str> {
        let pair = self.0.iter().find(|(n, _)| n == name);
        pair.map(|(_, value)| value.as_str())
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, V2Error> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match value {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(Some(true)),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(Some(false)),
            _ => {
                let cause = if matches!(name, "prevExist" | "refresh") {
                    format!("invalid value for {name}")
                } else {
                    format!("invalid value for \"{name}\"")
                };
                Err(V2Error::new(INVALID_FIELD, cause))
            }
        }
    }

    fn index(&self, name: &str) -> Result<Option<u64>, V2Error> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let cause = format!("invalid value for \"{name}\"");
        let number = value.parse();
        number
            .map(Some)
            .map_err(|_| V2Error::new(INDEX_NOT_A_NUMBER, cause))
    }
}

/// What a request asks for.
#[derive(Debug)]
pub(super) enum Asked {
    Get {
        path: String,
        recursive: bool,
        quorum: bool,
    },
    Watch {
        watch: Watch,
        index: Option<i64>,
        stream: bool,
    },
    Write {
        request: Request,
        /// The answer is to have no nodes.
        silent: bool,
    },
}

impl Asked {
    pub(super) fn parse(method: &Method, path: &str, form: &Form) -> Result<Self, V2Error> {
        let path = clean(path);
        let prev_index = form.index("prevIndex")?.unwrap_or(0);
        let wait_index = form.index("waitIndex")?;
        let flag = |name| form.flag(name).map(|flag| flag.unwrap_or(false));
        // Listings are always sorted, so that it asks for nothing.
        flag("sorted")?;
        let (recursive, wait) = (flag("recursive")?, flag("wait")?);
        let (dir, quorum, stream) = (flag("dir")?, flag("quorum")?, flag("stream")?);
        let reads = method == Method::GET || method == Method::HEAD;
        if wait && !reads {
            let cause = "\"wait\" can only be used with GET requests";
            return Err(V2Error::new(INVALID_FIELD, cause));
        }
        let prev_value = form.get("prevValue");
        if prev_value == Some("") {
            let cause = "\"prevValue\" cannot be empty";
            return Err(V2Error::new(PREV_VALUE_REQUIRED, cause));
        }
        let silent = flag("noValueOnSuccess")?;
        let ttl = match form.get("ttl") {
            None | Some("") => None,
            Some(ttl) => Some(
                ttl.parse()
                    .map_err(|_| V2Error::new(TTL_NOT_A_NUMBER, "invalid value for \"ttl\""))?,
            ),
        };
        let prev_exist = form.flag("prevExist")?;
        let refresh = form.flag("refresh")?.unwrap_or(false);
        let value = form.get("value").unwrap_or("");
        if refresh && !value.is_empty() {
            let cause = "A value was provided on a refresh";
            return Err(V2Error::new(REFRESH_VALUE, cause));
        }
        if refresh && ttl.is_none() {
            return Err(V2Error::new(REFRESH_TTL_REQUIRED, "No TTL value set"));
        }
        if reads {
            if !wait {
                return Ok(Self::Get {
                    path,
                    recursive,
                    quorum,
                });
            }
            return Ok(Self::Watch {
                watch: Watch { path, recursive },
                // 0 is none, as in etcd.
                index: wait_index
                    .filter(|i| *i > 0)
                    .map(|i| i64::try_from(i).unwrap_or(i64::MAX - 1)),
                stream,
            });
        }
        let conditional = prev_value.is_some() || prev_index != 0;
        let kind = if method == Method::POST {
            Kind::CreateInOrder
        } else if method == Method::DELETE {
            if conditional {
                Kind::CompareAndDelete
            } else {
                Kind::Delete
            }
        } else {
            match (prev_exist, conditional) {
                (Some(false), _) => Kind::Create,
                (_, true) => Kind::CompareAndSwap,
                (Some(true), false) => Kind::Update,
                // A new time to live needs a key that is there.
                (None, false) if refresh => Kind::Update,
                (None, false) => Kind::Set,
            }
        };
        Ok(Self::Write {
            silent,
            request: Request {
                kind,
                path,
                value: value.to_owned(),
                dir,
                recursive,
                refresh,
                ttl,
                prev_value: prev_value.unwrap_or_default().to_owned(),
                prev_index,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(method: &Method, body: &str, query: &str) -> Result<Asked, V2Error> {
        Asked::parse(method, "/a//b/", &Form::new(body.as_bytes(), query))
    }

    #[test]
    fn the_kind_of_a_write_follows_from_its_conditions() {
        for (method, form, kind) in [
            (&Method::PUT, "value=x", Kind::Set),
            (&Method::PUT, "prevExist=false", Kind::Create),
            (&Method::PUT, "prevExist=true", Kind::Update),
            (
                &Method::PUT,
                "prevExist=true&prevValue=y",
                Kind::CompareAndSwap,
            ),
            (&Method::PUT, "prevIndex=3", Kind::CompareAndSwap),
            (&Method::PUT, "prevIndex=0", Kind::Set),
            (&Method::POST, "", Kind::CreateInOrder),
            (&Method::DELETE, "", Kind::Delete),
            (&Method::DELETE, "prevValue=y", Kind::CompareAndDelete),
        ] {
            match asked(method, "", form) {
                Ok(Asked::Write { request, .. }) => {
                    assert_eq!(
                        (request.kind, request.path.as_str()),
                        (kind, "/a/b"),
                        "{form}"
                    );
                }
                other => panic!("{form}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_body_counts_before_the_query_and_percent_signs_are_decoded() {
        match asked(&Method::PUT, "value=a%20b+c%", "value=other") {
            Ok(Asked::Write { request, .. }) => assert_eq!(request.value, "a b c%"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_wrong_is_told_in_etcds_codes() {
        for (method, form, code) in [
            (&Method::PUT, "ttl=-1", 202),
            (&Method::PUT, "ttl=x", 202),
            (&Method::PUT, "prevIndex=x", 203),
            (&Method::GET, "waitIndex=x", 203),
            (&Method::GET, "recursive=maybe", 209),
            (&Method::PUT, "wait=true", 209),
            (&Method::PUT, "prevValue=", 201),
            (&Method::PUT, "refresh=true&value=x", 211),
            (&Method::PUT, "refresh=true", 212),
        ] {
            let code_of = asked(method, "", form).map(|_| ()).map_err(|err| err.code);
            assert_eq!(code_of, Err(code), "{form}");
        }
    }
}
