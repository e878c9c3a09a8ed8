//! Module aliases: shell patterns in which hyphen and underscore are the same.

/// Replaces `-` by `_` outside of brackets, as modprobe.d(5) says that both are the same in names and aliases.
#[must_use]
pub fn normalise(text: &str) -> String {
    let mut in_brackets = false;
    text.chars()
        .map(|c| {
            match c {
                '[' => in_brackets = true,
                ']' => in_brackets = false,
                '-' if !in_brackets => return '_',
                _ => {}
            }
            c
        })
        .collect()
}

/// Whether the whole of `text` matches `pattern`: `*`, `?`, `[a-c]`, `[!a]` as in fnmatch(3) without flags or escapes.
///
/// Takes at most |pattern| × |text| steps. A bracket that is never closed is an ordinary character.
#[must_use]
pub fn matches(pattern: &str, text: &str) -> bool {
    let (mut pattern, mut text) = (pattern.as_bytes(), text.as_bytes());
    // Where to go on after a mismatch: the pattern after the last star, and the text that the star has not eaten yet.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        match (pattern.split_first(), text.split_first()) {
            (Some((b'*', rest)), _) => {
                pattern = rest;
                retry = Some((rest, text));
                continue;
            }
            (None, None) => return true,
            (Some(_), Some((byte, rest))) => {
                if let Some(after) = match_one(pattern, *byte) {
                    pattern = after;
                    text = rest;
                    continue;
                }
            }
            (None, Some(_)) | (Some(_), None) => {}
        }
        match retry {
            Some((after_star, uneaten)) => match uneaten.split_first() {
                Some((_, rest)) => {
                    pattern = after_star;
                    text = rest;
                    retry = Some((after_star, rest));
                }
                None => return false,
            },
            None => return false,
        }
    }
}

/// Matches one byte against the head of the pattern; gives the rest of the pattern.
fn match_one(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    let (head, rest) = pattern.split_first()?;
    match head {
        b'?' => Some(rest),
        b'[' => match rest.iter().skip(1).position(|b| *b == b']') {
            Some(end) => {
                let (set, rest) = rest.split_at(end + 1);
                let (negated, set) = match set.split_first() {
                    Some((b'!' | b'^', set)) => (true, set),
                    _ => (false, set),
                };
                (in_set(set, byte) != negated).then(|| rest.get(1..).unwrap_or_default())
            }
            None => (byte == b'[').then_some(rest),
        },
        other => (*other == byte).then_some(rest),
    }
}

fn in_set(mut set: &[u8], byte: u8) -> bool {
    while let Some((first, rest)) = set.split_first() {
        if let [b'-', last, after @ ..] = rest {
            if (*first..=*last).contains(&byte) {
                return true;
            }
            set = after;
        } else {
            if *first == byte {
                return true;
            }
            set = rest;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn aliases_of_the_kernel_match_as_modprobe_matches_them() {
        for (pattern, text, expected) in [
            ("virtio:d00000002v*", "virtio:d00000002v00001AF4", true),
            ("virtio:d00000002v*", "virtio:d00000001v00001AF4", false),
            (
                "pci:v00001AF4d*sv*sd*bc*sc*i*",
                "pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00",
                true,
            ),
            ("acpi*:PNP0C0C:*", "acpi:PNP0C0C:", true),
            ("block_major_7_*", "block_major_7_0", true),
            (
                "usb:v*p*d*dc*dsc*dp*ic08isc0[1-6]ip50in*",
                "usb:v1p2d3dc0dsc0dp0ic08isc06ip50in00",
                true,
            ),
            (
                "usb:v*p*d*dc*dsc*dp*ic08isc0[1-6]ip50in*",
                "usb:v1p2d3dc0dsc0dp0ic08isc07ip50in00",
                false,
            ),
            ("x[!ab]", "xc", true),
            ("x[!ab]", "xa", false),
            ("x[", "x[", true),
            ("?", "", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn hyphens_inside_brackets_stay_ranges() {
        assert_eq!(normalise("fs-a[1-6]-b"), "fs_a[1-6]_b");
    }

    /// The definition, without regard to time.
    fn slow(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => {
                slow(rest, text)
                    || text
                        .split_first()
                        .is_some_and(|(_, after)| slow(pattern, after))
            }
            (Some((b'?', rest)), Some((_, after))) => slow(rest, after),
            (Some((p, rest)), Some((t, after))) => p == t && slow(rest, after),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in "[ab*?]{0,8}", text in "[ab]{0,10}") {
            prop_assert_eq!(matches(&pattern, &text), slow(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn no_input_makes_it_panic(pattern in any::<String>(), text in any::<String>()) {
            let _ = matches(&normalise(&pattern), &normalise(&text));
        }
    }
}
