//! Text as Go's `fmt`, `encoding/json` and etcdctl's libraries print it.

use std::time::Duration;

/// A value of JSON whose fields keep their order.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json {
    Null,
    Bool(bool),
    Number(i128),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(&'static str, Json)>),
}

impl Json {
    /// Bytes, in base64.
    pub(super) fn bytes(bytes: &[u8]) -> Self {
        Self::Text(base64(bytes))
    }

    pub(super) fn texts(texts: &[String]) -> Self {
        Self::List(texts.iter().cloned().map(Self::Text).collect())
    }

    /// An object of which what is zero or empty is left out.
    pub(super) fn sparse(fields: Vec<(&'static str, Self)>) -> Self {
        Self::Object(fields.into_iter().filter(|(_, v)| !v.is_zero()).collect())
    }

    fn is_zero(&self) -> bool {
        match self {
            Self::Null | Self::Bool(false) | Self::Number(0) => true,
            Self::Text(text) => text.is_empty(),
            Self::List(list) => list.is_empty(),
            _ => false,
        }
    }

    /// The fields of an object.
    pub(super) fn into_fields(self) -> Vec<(&'static str, Self)> {
        match self {
            Self::Object(fields) => fields,
            _ => Vec::new(),
        }
    }

    /// As `encoding/json` writes it, which writes `<`, `>` and `&` as escapes too.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Self::Number(value) => out.push_str(&value.to_string()),
            Self::Text(text) => write_text(text, out),
            Self::List(list) => {
                out.push('[');
                for (i, item) in list.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    item.write(out);
                }
                out.push(']');
            }
            Self::Object(fields) => {
                out.push('{');
                for (i, (name, value)) in fields.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    write_text(name, out);
                    out.push(':');
                    value.write(out);
                }
                out.push('}');
            }
        }
    }
}

fn write_text(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\x1f' => {
                out.push_str(&format!("\\u{:04x}", c as u32));
            }
            _ => out.push(c),
        }
    }
    out.push('"');
}

/// RFC 4648 §4, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let at = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let word = at(0) << 16 | at(1) << 8 | at(2);
        for i in 0..4 {
            if i > chunk.len() {
                out.push('=');
            } else {
                out.push(DIGITS[(word >> (18 - 6 * i) & 63) as usize] as char);
            }
        }
    }
    out
}

/// `%q`: in double quotes, with escapes for what cannot be printed.
pub(super) fn quoted(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\x07' => out.push_str("\\a"),
                '\x08' => out.push_str("\\b"),
                '\x0c' => out.push_str("\\f"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\x0b' => out.push_str("\\v"),
                '\0'..='\x1f' | '\x7f' => out.push_str(&format!("\\x{:02x}", c as u32)),
                ' '..='~' => out.push(c),
                _ if c.escape_debug().len() == 1 => out.push(c),
                _ if (c as u32) < 0x1_0000 => out.push_str(&format!("\\u{:04x}", c as u32)),
                _ => out.push_str(&format!("\\U{:08x}", c as u32)),
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out.push('"');
    out
}

/// Reads a quoted text at the beginning of `text`; returns it and what follows.
pub(super) fn unquote(text: &str) -> Option<(Vec<u8>, &str)> {
    let mut out = Vec::new();
    if let Some(raw) = text.strip_prefix('`') {
        let (inside, rest) = raw.split_once('`')?;
        return Some((inside.as_bytes().to_vec(), rest));
    }
    let body = text.strip_prefix('"')?;
    let mut chars = body.char_indices();
    let put = |c: char, out: &mut Vec<u8>| {
        out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
    };
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((out, &body[at + 1..])),
            '\\' => {
                let (at, c) = chars.next()?;
                let mut digits = |from: usize, count: usize, base: u32| {
                    let digits = body.get(from..from + count)?;
                    for _ in from..from + count - usize::from(base == 8) {
                        chars.next();
                    }
                    u32::from_str_radix(digits, base).ok()
                };
                match c {
                    'a' => out.push(7),
                    'b' => out.push(8),
                    'f' => out.push(12),
                    'n' => out.push(b'\n'),
                    'r' => out.push(b'\r'),
                    't' => out.push(b'\t'),
                    'v' => out.push(11),
                    '\\' | '"' | '\'' => out.push(c as u8),
                    'x' => out.push(u8::try_from(digits(at + 1, 2, 16)?).ok()?),
                    'u' => put(char::from_u32(digits(at + 1, 4, 16)?)?, &mut out),
                    'U' => put(char::from_u32(digits(at + 1, 8, 16)?)?, &mut out),
                    '0'..='7' => out.push(u8::try_from(digits(at, 3, 8)?).ok()?),
                    _ => return None,
                }
            }
            '\n' => return None,
            c => put(c, &mut out),
        }
    }
    None
}

/// A number of bytes for a reader, in powers of 1000.
pub(super) fn bytes_for_reading(bytes: u64) -> String {
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["kB", "MB", "GB", "TB", "PB", "EB"] {
        if value < 1000.0 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    let value = (value * 10.0 + 0.5).floor() / 10.0;
    match value < 10.0 {
        true => format!("{value:.1} {unit}"),
        false => format!("{value:.0} {unit}"),
    }
}

/// A time as Go prints it: `1.5s`, `12.345ms`.
pub(super) fn time(time: Duration) -> String {
    let nanos = time.as_nanos();
    let (scale, unit) = match nanos {
        0 => return "0s".to_owned(),
        1..1_000 => return format!("{nanos}ns"),
        1_000..1_000_000 => (1_000, "µs"),
        1_000_000..1_000_000_000 => (1_000_000, "ms"),
        _ => (1_000_000_000, "s"),
    };
    let fraction = format!("{:0width$}", nanos % scale, width = scale.ilog10() as usize);
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    let mut whole = nanos / scale;
    let mut before = String::new();
    if unit == "s" && whole >= 60 {
        if whole >= 3600 {
            before = format!("{}h", whole / 3600);
        }
        before += &format!("{}m", whole / 60 % 60);
        whole %= 60;
    }
    format!("{before}{whole}{point}{fraction}{unit}")
}

/// Columns with a frame, titles in the middle and in capitals, cells to the right.
pub(super) fn table(titles: &[&str], rows: &[Vec<String>]) -> String {
    let width = |text: &str| text.chars().count();
    let widths: Vec<usize> = titles
        .iter()
        .enumerate()
        .map(|(i, title)| {
            let cells = rows.iter().filter_map(|row| row.get(i));
            let widest = cells.map(|cell| width(cell)).max().unwrap_or(0);
            widest.max(width(title))
        })
        .collect();
    let line: String = widths
        .iter()
        .map(|w| format!("+{}", "-".repeat(w + 2)))
        .chain(["+\n".to_owned()])
        .collect();
    let mut out = line.clone();
    for (title, w) in titles.iter().zip(&widths) {
        let gap = w - width(title);
        let left = gap / 2;
        let right = gap - left;
        out += &format!(
            "| {}{}{} ",
            " ".repeat(left),
            title.to_uppercase(),
            " ".repeat(right)
        );
    }
    out += "|\n";
    out += &line;
    for row in rows {
        for (cell, w) in row.iter().zip(&widths) {
            out += &format!("| {}{cell} ", " ".repeat(w - width(cell)));
        }
        out += "|\n";
    }
    if !rows.is_empty() {
        out += &line;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_and_read_back() {
        for bytes in [
            &b"plain"[..],
            b"a\"b\\c\n\t\x00\x7f",
            "gr\u{fc}n \u{1f980} \u{200b}".as_bytes(),
            b"\xff\xfe broken",
        ] {
            let text = quoted(bytes);
            let (back, rest) = unquote(&text).expect("it is quoted");
            assert_eq!((back.as_slice(), rest), (bytes, ""), "{text}");
        }
        assert_eq!(unquote("\"a\") rest"), Some((b"a".to_vec(), ") rest")));
        assert_eq!(unquote("\"\\101\\\"\""), Some((b"A\"".to_vec(), "")));
        for wrong in ["a", "\"a", "\"\\x1\"", "\"\\q\"", "\"\\u12\u{fc}\"", "\"\\"] {
            assert_eq!(unquote(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn numbers_are_written_as_go_does() {
        assert_eq!(bytes_for_reading(9), "9 B");
        assert_eq!(bytes_for_reading(20480), "20 kB");
        assert_eq!(bytes_for_reading(1_250_000), "1.3 MB");
        assert_eq!(time(Duration::from_nanos(1_836_008)), "1.836008ms");
        assert_eq!(time(Duration::from_millis(1500)), "1.5s");
        assert_eq!(time(Duration::from_secs(3720)), "1h2m0s");
        assert_eq!(base64(b"a"), "YQ==");
        assert_eq!(base64(b"abc"), "YWJj");
        assert_eq!(Json::Text("<a>\n".into()).text(), "\"\\u003ca\\u003e\\n\"");
    }
}
