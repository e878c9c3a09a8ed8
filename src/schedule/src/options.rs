//! A unit file as fleet saw it: a list of options, their canonical text, and the hash that `fleetctl` shows.

use sha1::{Digest as _, Sha1};

/// One `Name=Value` below its section. A continued value keeps its backslash-newlines.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UnitOption {
    /// The section's name without brackets.
    pub section: String,
    /// What stands before the first `=`.
    pub name: String,
    /// What stands behind it, without white space at the ends.
    pub value: String,
}

/// Why a text has no options.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// A section header without its closing bracket, or with something behind it.
    #[error("line {line}: {text:?} is no section header")]
    Section {
        /// From 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// A line in a section that is no assignment.
    #[error("line {line}: {text:?} has no equals sign")]
    Assignment {
        /// From 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// Longer than 1 MiB.
    #[error("the file is {0} bytes long, the limit is {MAX_BYTES}")]
    Length(usize),
}

/// The longest unit file in bytes: what fits into one request to the store with room to spare.
pub(crate) const MAX_BYTES: usize = 1 << 20;

/// Reads options. Text before the first section is ignored, as are comments; a comment that ends in a backslash takes the
/// next line with it, and one within a continued value is a part of the value.
///
/// # Errors
/// [`ParseError`] names the line.
pub fn parse(text: &str) -> Result<Vec<UnitOption>, ParseError> {
    if text.len() > MAX_BYTES {
        return Err(ParseError::Length(text.len()));
    }
    let mut options = Vec::new();
    let mut section: Option<&str> = None;
    let mut lines = text
        .split('\n')
        .map(|line| line.strip_suffix('\r').unwrap_or(line))
        .enumerate();
    while let Some((index, line)) = lines.next() {
        let bare = line.trim();
        let line_number = index + 1;
        if bare.is_empty() {
            continue;
        }
        if bare.starts_with(['#', ';']) {
            if line.ends_with('\\') {
                for (_, swallowed) in lines.by_ref() {
                    if !swallowed.ends_with('\\') {
                        break;
                    }
                }
            }
            continue;
        }
        if let Some(rest) = bare.strip_prefix('[') {
            match rest.split_once(']') {
                Some((name, "")) => section = Some(name),
                _ => {
                    return Err(ParseError::Section {
                        line: line_number,
                        text: bare.to_owned(),
                    });
                }
            }
            continue;
        }
        let Some(section) = section else {
            continue;
        };
        let Some((name, value)) = line.split_once('=') else {
            return Err(ParseError::Assignment {
                line: line_number,
                text: bare.to_owned(),
            });
        };
        let mut whole = value.to_owned();
        let mut part = value;
        while part.ends_with('\\') {
            let Some((_, next)) = lines.next() else {
                break;
            };
            if next.trim().is_empty() {
                break;
            }
            whole.push('\n');
            whole.push_str(next);
            part = next;
        }
        options.push(UnitOption {
            section: section.to_owned(),
            name: name.trim().to_owned(),
            value: whole.trim().to_owned(),
        });
    }
    Ok(options)
}

/// The canonical text: sections in the order in which they first appear, an empty line between two, no comments.
#[must_use]
pub fn canonical(options: &[UnitOption]) -> String {
    let mut sections: Vec<(&str, Vec<&UnitOption>)> = Vec::new();
    for option in options {
        match sections
            .iter_mut()
            .find(|(name, _)| *name == option.section)
        {
            Some((_, list)) => list.push(option),
            None => sections.push((&option.section, vec![option])),
        }
    }
    let mut text = String::new();
    for (index, (name, list)) in sections.iter().enumerate() {
        if index > 0 {
            text.push('\n');
        }
        text.push_str(&format!("[{name}]\n"));
        for option in list {
            text.push_str(&format!("{}={}\n", option.name, option.value));
        }
    }
    text
}

/// SHA-1 of the canonical text in lower-case hexadecimal digits: an identity, not a protection.
#[must_use]
pub fn hash(options: &[UnitOption]) -> String {
    let digest = Sha1::digest(canonical(options).as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(section: &str, name: &str, value: &str) -> UnitOption {
        UnitOption {
            section: section.to_owned(),
            name: name.to_owned(),
            value: value.to_owned(),
        }
    }

    #[test]
    fn the_hash_is_fleets() {
        let options = parse("[Service]\nExecStart=/bin/sleep 100\n").unwrap();
        assert_eq!(hash(&options), "1c6fb6f3684bafb0c173d8b8b957ceff031180c1");
    }

    #[test]
    fn comments_and_spacing_do_not_change_the_hash_but_values_do() {
        let plain = hash(&parse("[Service]\nExecStart=/bin/a\n[Unit]\nAfter=b\n").unwrap());
        let loose =
            "\n# why\n[Service]\n  ExecStart = /bin/a  \r\n\n;x\\\nswallowed\n[Unit]\nAfter=b";
        assert_eq!(hash(&parse(loose).unwrap()), plain);
        assert_ne!(
            hash(&parse("[Service]\nExecStart=/bin/b\n[Unit]\nAfter=b\n").unwrap()),
            plain
        );
    }

    #[test]
    fn a_continued_value_keeps_its_lines() {
        let options = parse("[Service]\nExecStart=/bin/a \\\n# kept\\\n b\nX=1\n").unwrap();
        assert_eq!(
            options,
            [
                option("Service", "ExecStart", "/bin/a \\\n# kept\\\n b"),
                option("Service", "X", "1")
            ]
        );
        assert_eq!(
            parse(&canonical(&options)).unwrap(),
            options,
            "the canonical text reads back"
        );
    }

    #[test]
    fn sections_are_gathered_in_the_order_of_their_first_appearance() {
        let options = parse("stray\n[A]\nx=1\n[B]\ny=2\n[A]\nz=3\n").unwrap();
        assert_eq!(canonical(&options), "[A]\nx=1\nz=3\n\n[B]\ny=2\n");
    }

    #[test]
    fn broken_lines_are_told_with_their_number() {
        assert!(matches!(
            parse("[A]\nnothing\n"),
            Err(ParseError::Assignment { line: 2, .. })
        ));
        assert!(matches!(
            parse("[A] b\n"),
            Err(ParseError::Section { line: 1, .. })
        ));
        assert!(matches!(
            parse("[A\n"),
            Err(ParseError::Section { line: 1, .. })
        ));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_the_canonical_text_is_stable(text in "[\\[\\]a-c=#;\\\\ \n\r]{0,60}") {
            if let Ok(options) = parse(&text) {
                // A name may begin like a comment or a section only through trimming; those are not written back.
                let once = canonical(&options);
                if let Ok(again) = parse(&once) {
                    let twice = canonical(&again);
                    proptest::prop_assert_eq!(canonical(&parse(&twice).unwrap_or_default()), twice);
                }
            }
        }
    }
}
