//! What is mounted, for this thread: `/proc/thread-self/mountinfo` (proc_pid_mountinfo(5)).

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its number while it is mounted, as in `stx_mnt_id` of statx(2).
    pub id: u64,
    /// Where it is.
    pub target: String,
    /// The filesystem's type.
    pub filesystem: String,
    /// Whether the filesystem itself may not be written.
    pub is_read_only: bool,
}

/// All mounts in the order in which they were made; none without `/proc`.
#[must_use]
pub fn read() -> Vec<Mount> {
    let text = std::fs::read("/proc/thread-self/mountinfo").unwrap_or_default();
    parse(&String::from_utf8_lossy(&text))
}

/// As [`read`], from an opened `mountinfo`: for who has no `/proc` of its own. The file is read from where it stands.
///
/// # Errors
/// What read(2) gives.
pub fn read_from(mut file: impl std::io::Read) -> std::io::Result<Vec<Mount>> {
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

/// Whether something is mounted at `target`.
#[must_use]
pub fn is_mounted(target: &str) -> bool {
    read().iter().any(|mount| mount.target == target)
}

fn parse(text: &str) -> Vec<Mount> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Mount> {
    // Optional fields end with a hyphen that stands alone.
    let (mount, superblock) = line.split_once(" - ")?;
    let mut fields = mount.split(' ');
    let id = fields.next()?.parse().ok()?;
    let target = fields.nth(3)?;
    let mut superblock = superblock.split(' ');
    let filesystem = superblock.next()?;
    let options = superblock.nth(1)?;
    Some(Mount {
        id,
        target: unescaped(target),
        filesystem: filesystem.to_owned(),
        is_read_only: options.split(',').next() == Some("ro"),
    })
}

/// The kernel writes space, tab, newline and backslash as a backslash and three octal digits.
fn unescaped(field: &str) -> String {
    let mut text = String::new();
    let mut rest = field;
    while let Some((before, after)) = rest.split_once('\\') {
        text.push_str(before);
        let byte = after
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (byte, after.get(3..)) {
            (Some(byte), Some(tail)) => {
                text.push(char::from(byte));
                rest = tail;
            }
            _ => {
                text.push('\\');
                rest = after;
            }
        }
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_gives_its_place_its_type_and_whether_it_may_be_written() {
        let mounts = parse(
            "22 1 254:1 / / ro,nodev - erofs /dev/vda1 ro,user_xattr\n\
             36 22 254:17 / /var/a\\040b rw,nosuid shared:1 master:2 - ext4 /dev/vdb1 rw\nnonsense\n",
        );
        assert_eq!(mounts.len(), 2);
        assert_eq!(
            (mounts[0].target.as_str(), mounts[0].is_read_only),
            ("/", true)
        );
        assert_eq!(mounts[1].target, "/var/a b");
        assert_eq!(mounts[1].filesystem, "ext4");
        assert!(!mounts[1].is_read_only);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in any::<String>(), field in "[\\\\0-9é ]{0,12}") {
            let _ = parse(&text);
            let _ = unescaped(&field);
        }
    }
}
