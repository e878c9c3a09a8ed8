//! Cuts a unit's output into lines. Pure.

use crate::format::MESSAGE_MAX_BYTES;

/// A line of a stream, or a part of one.
#[derive(Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Without the newline, nor a carriage return before it.
    pub text: &'a [u8],
    /// The line was longer than a message can be, and goes on in the next `Line`.
    pub continues: bool,
    /// The stream ended, or was left, before a newline came.
    pub unterminated: bool,
}

/// Collects what comes from one stream until a line is whole. Holds at most [`MESSAGE_MAX_BYTES`].
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
    /// The last line given out continues, so an immediate newline ends it and is no empty line.
    continuing: bool,
}

impl Lines {
    /// How many bytes wait for their newline.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.partial.len()
    }

    /// Takes the next bytes of the stream and gives each line that they complete to `give`.
    pub fn push(&mut self, mut bytes: &[u8], mut give: impl FnMut(Line<'_>)) {
        while !bytes.is_empty() {
            let room = MESSAGE_MAX_BYTES - self.partial.len();
            // One byte more than there is room for: a line of exactly the longest length is not split.
            let window = &bytes[..bytes.len().min(room + 1)];
            if let Some(end) = window.iter().position(|byte| *byte == b'\n') {
                let head = &bytes[..end];
                bytes = &bytes[end + 1..];
                let ends_split_line = self.continuing && self.partial.is_empty() && head.is_empty();
                self.continuing = false;
                if ends_split_line {
                    continue;
                }
                if self.partial.is_empty() {
                    give(whole(head));
                } else {
                    self.partial.extend_from_slice(head);
                    give(whole(&self.partial));
                    // Most streams are idle most of the time: keep no buffer for them.
                    self.partial = Vec::new();
                }
            } else if window.len() > room {
                self.partial.extend_from_slice(&bytes[..room]);
                bytes = &bytes[room..];
                self.split(&mut give);
            } else {
                self.partial.extend_from_slice(bytes);
                return;
            }
        }
    }

    /// Gives out what is held as a part of a line that goes on, to free its memory.
    pub fn split(&mut self, mut give: impl FnMut(Line<'_>)) {
        if self.partial.is_empty() {
            return;
        }
        let text = std::mem::take(&mut self.partial);
        self.continuing = true;
        give(Line {
            text: &text,
            continues: true,
            unterminated: false,
        });
    }

    /// The stream has ended or is left: gives out what is held.
    pub fn finish(&mut self, mut give: impl FnMut(Line<'_>)) {
        let text = std::mem::take(&mut self.partial);
        self.continuing = false;
        if !text.is_empty() {
            give(Line {
                text: &text,
                continues: false,
                unterminated: true,
            });
        }
    }
}

fn whole(text: &[u8]) -> Line<'_> {
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    Line {
        text,
        continues: false,
        unterminated: false,
    }
}

/// Takes the priority off a line that begins with `<N>` (sd-daemon(3)); N may hold a facility above the three
/// low bits, so it goes to 191 (RFC 5424 section 6.2.1).
#[must_use]
pub fn split_priority(line: &[u8]) -> (Option<u8>, &[u8]) {
    let Some(rest) = line.strip_prefix(b"<") else {
        return (None, line);
    };
    let digits = rest
        .iter()
        .take(4)
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    if !(1..=3).contains(&digits) || rest.get(digits) != Some(&b'>') {
        return (None, line);
    }
    let number = rest[..digits]
        .iter()
        .fold(0u16, |n, byte| n * 10 + u16::from(byte - b'0'));
    if number > 191 {
        return (None, line);
    }
    (Some((number & 7) as u8), &rest[digits + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(chunks: &[&[u8]]) -> Vec<(Vec<u8>, bool, bool)> {
        let mut lines = Lines::default();
        let mut out = Vec::new();
        let mut give =
            |line: Line<'_>| out.push((line.text.to_vec(), line.continues, line.unterminated));
        for chunk in chunks {
            lines.push(chunk, &mut give);
            assert!(lines.held_bytes() <= MESSAGE_MAX_BYTES);
        }
        lines.finish(&mut give);
        out
    }

    #[test]
    fn a_line_is_given_when_its_newline_comes() {
        let mut lines = Lines::default();
        lines.push(b"half a ", |line| panic!("{line:?}"));
        let mut seen = Vec::new();
        lines.push(b"line\nnext", |line| seen.push(line.text.to_vec()));
        assert_eq!(seen, [b"half a line"]);
        assert_eq!(lines.held_bytes(), 4);
    }

    #[test]
    fn the_last_line_needs_no_newline() {
        assert_eq!(
            cut(&[b"one\ntwo"]),
            [
                (b"one".to_vec(), false, false),
                (b"two".to_vec(), false, true)
            ]
        );
    }

    #[test]
    fn nul_invalid_utf8_and_empty_lines_are_kept_as_they_are() {
        assert_eq!(
            cut(&[b"a\0b\xff\xfe\n\nc\r\n"]),
            [
                (b"a\0b\xff\xfe".to_vec(), false, false),
                (b"".to_vec(), false, false),
                (b"c".to_vec(), false, false)
            ]
        );
    }

    #[test]
    fn a_line_of_the_longest_length_is_one_and_a_byte_more_is_split() {
        let mut longest = vec![b'x'; MESSAGE_MAX_BYTES];
        longest.push(b'\n');
        let seen = cut(&[&longest]);
        assert_eq!(seen.len(), 1);
        assert!(!seen[0].1);
        longest.insert(0, b'y');
        let seen = cut(&[&longest]);
        assert_eq!(seen.len(), 2);
        assert_eq!((seen[0].0.len(), seen[0].1), (MESSAGE_MAX_BYTES, true));
        assert_eq!((seen[1].0.as_slice(), seen[1].1), (&b"x"[..], false));
    }

    #[test]
    fn priorities_are_taken_only_from_well_formed_prefixes() {
        assert_eq!(split_priority(b"<3>oops"), (Some(3), &b"oops"[..]));
        assert_eq!(
            split_priority(b"<30>daemon.info"),
            (Some(6), &b"daemon.info"[..])
        );
        assert_eq!(split_priority(b"<7>"), (Some(7), &b""[..]));
        for text in [
            "<>x", "<192>x", "<0003>x", "<3x", "< 3>x", "3>x", "<-1>x", "<html>", "<", "",
        ] {
            assert_eq!(split_priority(text.as_bytes()), (None, text.as_bytes()));
        }
    }

    proptest! {
        #[test]
        fn how_the_output_is_chunked_does_not_matter(
            text in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'a'), Just(0), any::<u8>()], 0..400),
            cuts in proptest::collection::vec(0..400usize, 0..8),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|at| *at < text.len()).collect();
            cuts.sort_unstable();
            let mut chunks = Vec::new();
            let mut from = 0;
            for at in cuts {
                chunks.push(&text[from..at]);
                from = at;
            }
            chunks.push(&text[from..]);
            prop_assert_eq!(cut(&chunks), cut(&[&text]));
        }

        #[test]
        fn no_byte_of_a_long_line_is_lost(length in 0..3 * MESSAGE_MAX_BYTES) {
            let text = vec![b'z'; length];
            let total: usize = cut(&[&text]).iter().map(|line| line.0.len()).sum();
            prop_assert_eq!(total, length);
        }
    }
}
