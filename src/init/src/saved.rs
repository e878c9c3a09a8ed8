//! What PID 1 knows, written down as it changes, so that another PID 1 goes on with it after a re-execution or a crash.
//!
//! A log in memory (memfd_create(2)) of lines of JSON, one for each thing that changed: the last line about a thing counts, and a
//! last line that is cut off does not. Descriptors are their numbers: they stay open over execve(2).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

use serde::Serialize;
use serde_json::Value;

/// The log is written anew when it has grown to so many times what it was when that was done last.
const GROWTH: u64 = 4;
/// It is left alone up to this size in bytes.
const SMALL_BYTES: u64 = 1 << 20;

/// The log.
#[derive(Debug)]
pub struct Log {
    file: File,
    length_bytes: u64,
    compact_bytes: u64,
}

impl Log {
    /// An empty log.
    ///
    /// # Errors
    /// Those of memfd_create(2).
    pub fn new() -> io::Result<Self> {
        let fd = rustix::fs::memfd_create("orlop-state", rustix::fs::MemfdFlags::CLOEXEC)?;
        Ok(Self {
            file: File::from(fd),
            length_bytes: 0,
            compact_bytes: 0,
        })
    }

    /// Its descriptor's number.
    #[must_use]
    pub fn number(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Adds lines.
    ///
    /// # Errors
    /// Those of write(2): memory is short.
    pub fn append(&mut self, text: &str) -> io::Result<()> {
        self.file.write_all(text.as_bytes())?;
        let added = u64::try_from(text.len()).unwrap_or(u64::MAX);
        self.length_bytes = self.length_bytes.saturating_add(added);
        Ok(())
    }

    /// Whether most of it is old.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        let fresh = self.compact_bytes.max(SMALL_BYTES / GROWTH);
        self.length_bytes > fresh.saturating_mul(GROWTH)
    }

    /// What is in it now is all that counts.
    pub fn is_compact(&mut self) {
        self.compact_bytes = self.length_bytes;
    }
}

/// Adds a line about a thing to `lines`.
pub fn add(about: &impl Serialize, lines: &mut String) {
    // What is written down has no maps with keys that are no text, which alone could not be written.
    if let Ok(line) = serde_json::to_string(about) {
        lines.push_str(&line);
        lines.push('\n');
    }
}

/// The key of a line: what it is about.
fn key(line: &Value) -> Option<String> {
    ["unit", "stream", "machine"].into_iter().find_map(|kind| {
        let name = line.get(kind)?;
        Some(match name.as_str() {
            Some(name) => format!("{kind}:{name}"),
            None => format!("{kind}:{name}"),
        })
    })
}

/// The last line about each thing, in the order in which the things came.
#[must_use]
pub fn parse(text: &str) -> Vec<Value> {
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    let mut lines: Vec<Value> = Vec::new();
    for line in text.lines() {
        let Ok(value) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let Some(key) = key(&value) else { continue };
        match places.get(&key).and_then(|at| lines.get_mut(*at)) {
            Some(place) => *place = value,
            None => {
                places.insert(key, lines.len());
                lines.push(value);
            }
        }
    }
    lines
}

/// Reads the log that another PID 1 has left at this number.
///
/// # Errors
/// Those of lseek(2) and read(2).
pub fn read(number: RawFd) -> io::Result<Vec<Value>> {
    let mut file = File::from(orlop_sys::inherited::take(number)?);
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(parse(&String::from_utf8_lossy(&bytes)))
}

/// Takes over the descriptor that a line names; each can be taken once.
#[must_use]
pub fn take(line: &Value, field: &str) -> Option<OwnedFd> {
    take_number(line.get(field)?)
}

/// Takes over the descriptor of that number.
#[must_use]
pub fn take_number(number: &Value) -> Option<OwnedFd> {
    let number = RawFd::try_from(number.as_i64()?).ok()?;
    if number < 3 {
        return None;
    }
    orlop_sys::inherited::take(number).ok()
}

/// Makes every descriptor stay open over execve(2).
pub fn keep_descriptors() {
    for number in open_numbers() {
        orlop_sys::inherited::keep(number);
    }
}

/// The contrary of [`keep_descriptors`].
pub fn hide_descriptors() {
    for number in open_numbers() {
        orlop_sys::inherited::hide(number);
    }
}

/// Closes what nobody has taken: taken descriptors are closed by the next execve(2), the others are not.
pub fn close_rest() {
    for number in open_numbers() {
        if !orlop_sys::inherited::is_private(number) {
            // It is open, and nobody here knows its number.
            let _ = nix::unistd::close(number);
        }
    }
}

fn open_numbers() -> Vec<RawFd> {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_line_about_a_thing_counts_and_a_cut_one_does_not() {
        let lines = parse(
            "{\"unit\":\"a\",\"x\":1}\n{\"stream\":7}\n{\"unit\":\"b\"}\n{\"unit\":\"a\",\"x\":2}\n{\"unit\":\"b\",\"x",
        );
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0]["x"], 2);
        assert_eq!(lines[2], serde_json::json!({ "unit": "b" }));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in any::<String>(), json in "[{}\\[\\]\":,0-9a-z\n]{0,60}") {
            let _ = parse(&text);
            let _ = parse(&json);
        }
    }
}
