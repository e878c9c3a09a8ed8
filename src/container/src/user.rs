//! Users and groups by the files of the image: `/etc/passwd` and `/etc/group`.

use std::io::Read;
use std::path::Path;

use rustix::fs::{FileType, OFlags, fstat};
use rustix::io::Errno;

use crate::paths::Root;
use crate::report::{During, Failure};

/// Larger account files are refused.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Who the payload runs as.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Besides `gid`.
    pub(crate) groups: Vec<u32>,
    /// The home directory, where the image names one.
    pub(crate) home: Option<String>,
}

/// Finds what `--user` and `--group-add` mean in the image whose root is given.
pub(crate) fn resolve(root: &Root, user: &str, groups: &[String]) -> Result<Identity, Failure> {
    let passwd = read(root, "/etc/passwd")?;
    let group = read(root, "/etc/group")?;
    let mut identity = parse(user, &passwd, &group).map_err(Failure::refused)?;
    for wanted in groups {
        identity
            .groups
            .push(group_number(wanted, &group).map_err(Failure::refused)?);
    }
    Ok(identity)
}

fn read(root: &Root, path: &str) -> Result<String, Failure> {
    // A fifo must not hold the start up, and a device must not be read.
    let file = match root.lookup(
        Path::new(path),
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
    ) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(String::new()),
        Err(error) => return Err(error).during(|| format!("open the image's {path}")),
    };
    let status = fstat(&file).during(|| format!("look at the image's {path}"))?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(Failure::refused(format!(
            "the image's {path} is no regular file"
        )));
    }
    let mut text = Vec::new();
    std::fs::File::from(file)
        .take(MAX_FILE_BYTES)
        .read_to_end(&mut text)
        .during(|| format!("read the image's {path}"))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// `user`, `uid`, `user:group`, `uid:gid` or a mix, as the image specification has it.
///
/// A number needs no line in the files. Names that look like numbers count as numbers.
fn parse(user: &str, passwd: &str, group: &str) -> Result<Identity, String> {
    let (user, wanted_group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = number(user);
    let entry = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let uid: u32 = fields.get(2)?.parse().ok()?;
        let matches = match number {
            Some(wanted) => uid == wanted,
            None => *fields.first()? == user,
        };
        matches.then(|| {
            let gid = fields.get(3).and_then(|f| f.parse().ok()).unwrap_or(0);
            let home = fields
                .get(5)
                .filter(|h| h.starts_with('/'))
                .map(|h| (*h).to_owned());
            (
                uid,
                gid,
                home,
                fields.first().map_or("", |name| *name).to_owned(),
            )
        })
    });
    let (uid, gid, home, name) = match (entry, number) {
        (Some(entry), _) => entry,
        (None, Some(uid)) => (uid, 0, None, String::new()),
        (None, None) => return Err(format!("no user {user:?} in the image's /etc/passwd")),
    };
    let mut identity = Identity {
        uid,
        gid,
        groups: Vec::new(),
        home,
    };
    match wanted_group {
        Some(wanted) => {
            identity.gid = group_number(wanted, group)?;
        }
        None if !name.is_empty() => {
            identity.groups = groups(group)
                .filter(|(_, _, members)| members.split(',').any(|m| m == name))
                .map(|(_, gid, _)| gid)
                .collect();
        }
        None => {}
    }
    Ok(identity)
}

/// A group by number or name.
fn group_number(wanted: &str, group: &str) -> Result<u32, String> {
    number(wanted)
        .or_else(|| {
            groups(group)
                .find(|(name, ..)| *name == wanted)
                .map(|(_, gid, _)| gid)
        })
        .ok_or_else(|| format!("no group {wanted:?} in the image's /etc/group"))
}

/// A whole number and nothing else; `4294967295` means "no change" to the kernel and is not accepted.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|n| digits && *n != u32::MAX)
}

/// Name, number and members of each group.
fn groups(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:101:102:Web:/srv/web:/bin/false\n";
    const GROUP: &str = "root:x:0:\nweb:x:102:\nadm:x:4:root,web\ntty:x:5:web\n";

    #[test]
    fn a_name_brings_its_groups_and_home() {
        let web = parse("web", PASSWD, GROUP).unwrap();
        assert_eq!(
            (web.uid, web.gid, web.groups, web.home.as_deref()),
            (101, 102, vec![4, 5], Some("/srv/web"))
        );
    }

    #[test]
    fn numbers_need_no_entry_and_a_given_group_replaces_the_rest() {
        assert_eq!(
            parse("1000", PASSWD, GROUP).unwrap(),
            Identity {
                uid: 1000,
                ..Identity::default()
            }
        );
        let mixed = parse("101:adm", PASSWD, GROUP).unwrap();
        assert_eq!((mixed.uid, mixed.gid, mixed.groups.len()), (101, 4, 0));
        assert_eq!(
            parse("", PASSWD, GROUP).unwrap().home.as_deref(),
            Some("/root")
        );
    }

    #[test]
    fn nobody_becomes_root_by_a_misread_number() {
        for hostile in [
            "0x0",
            "+0",
            " 0",
            "1e3",
            "-1",
            "4294967295",
            "4294967296",
            "nobody",
        ] {
            assert!(parse(hostile, PASSWD, GROUP).is_err(), "{hostile}");
        }
        assert!(parse("web:nogroup", PASSWD, GROUP).is_err());
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(user in ".{0,12}", passwd in "[a-z0-9:\n,/]{0,80}", group in "[a-z0-9:\n,]{0,80}") {
            let _ = parse(&user, &passwd, &group);
        }
    }
}
