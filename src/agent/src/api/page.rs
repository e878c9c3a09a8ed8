//! Pages of lists: fleet's token is two little-endian 16-bit numbers, limit and page, in URL-safe base64 (RFC 4648 §5).

use serde_json::{Value, json};

/// Entries on a page.
const LIMIT: u16 = 100;
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Which part of a list is asked for; pages count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Page {
    limit: u16,
    number: u16,
}

impl Page {
    /// The page that a query asks for, the first when it asks for none.
    pub(super) fn parse(query: Option<&str>) -> Result<Self, String> {
        match value(query, "nextPageToken") {
            None => Ok(Self {
                limit: LIMIT,
                number: 1,
            }),
            Some(token) => Self::decode(&token)
                .filter(|page| page.limit > 0 && page.number > 0)
                .ok_or_else(|| format!("{token:?} is no page token")),
        }
    }

    fn decode(token: &str) -> Option<Self> {
        let digits = token.strip_suffix("==").unwrap_or(token);
        if digits.len() != 6 {
            return None;
        }
        let mut bits: u64 = 0;
        for byte in digits.bytes() {
            let digit = ALPHABET.iter().position(|c| *c == byte)?;
            bits = bits << 6 | u64::try_from(digit).ok()?;
        }
        // Six digits are 36 bits, of which the last four are no part of four bytes.
        let [_, _, _, _, a, b, c, d] = (bits >> 4).to_be_bytes();
        Some(Self {
            limit: u16::from_le_bytes([a, b]),
            number: u16::from_le_bytes([c, d]),
        })
    }

    fn encode(self) -> String {
        let [a, b] = self.limit.to_le_bytes();
        let [c, d] = self.number.to_le_bytes();
        let bits = u64::from(u32::from_be_bytes([a, b, c, d])) << 4;
        let digit = |shift: u32| {
            let index = usize::try_from(bits >> shift & 63).unwrap_or_default();
            char::from(ALPHABET.get(index).copied().unwrap_or(b'A'))
        };
        let digits: String = [30, 24, 18, 12, 6, 0].into_iter().map(digit).collect();
        digits + "=="
    }

    /// The page of a list, with the token of the next one.
    pub(super) fn cut(self, name: &str, all: Vec<Value>) -> Value {
        let limit = usize::from(self.limit);
        let start = limit * usize::from(self.number - 1);
        let more = all.len() > start + limit;
        let part: Vec<Value> = all.into_iter().skip(start).take(limit).collect();
        let mut body = json!({ name: part });
        if more && let (Some(next), Some(map)) = (self.number.checked_add(1), body.as_object_mut())
        {
            let next = Self {
                limit: self.limit,
                number: next,
            };
            map.insert("nextPageToken".to_owned(), next.encode().into());
        }
        body
    }
}

/// A value of a query, percent-encoding undone; empty ones are none.
pub(super) fn value(query: Option<&str>, key: &str) -> Option<String> {
    let pairs = query.unwrap_or_default().split('&');
    let text = pairs
        .filter_map(|pair| pair.split_once('='))
        .find(|(name, _)| *name == key)
        .map(|(_, value)| value)?;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(rest.next())?, digit(rest.next())?);
                bytes.push(u8::try_from(high << 4 | low).ok()?);
            }
            b'+' => bytes.push(b' '),
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes)
        .ok()
        .filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_fleets() {
        for (limit, number, token) in [
            (100, 2, "ZAACAA=="),
            (19, 11852, "EwBMLg=="),
            (12482, 0, "wjAAAA=="),
        ] {
            let page = Page { limit, number };
            assert_eq!(page.encode(), token);
            assert_eq!(Page::decode(token), Some(page));
        }
        for bad in ["", "x", "wjAAAA==", "ZAACAA=A", "~~~~~~=="] {
            let query = format!("nextPageToken={bad}x");
            assert!(Page::parse(Some(&query)).is_err(), "{bad}");
        }
    }

    #[test]
    fn all_pages_together_are_the_list() {
        let all: Vec<Value> = (0..250).map(Value::from).collect();
        let mut seen = Vec::new();
        let mut query = None;
        loop {
            let page = Page::parse(query.as_deref()).unwrap();
            let body = page.cut("units", all.clone());
            seen.extend(body["units"].as_array().unwrap().clone());
            match body["nextPageToken"].as_str() {
                Some(token) => query = Some(format!("nextPageToken={}", token.replace('=', "%3D"))),
                None => break,
            }
        }
        assert_eq!(seen, all);
    }
}
