//! Users and groups by name, from `/etc/passwd` and `/etc/group` themselves: no name service.

use std::fs;

/// A user, passwd(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The login name.
    pub name: String,
    /// The user's number.
    pub uid: u32,
    /// The primary group's number.
    pub gid: u32,
    /// The home directory.
    pub home: String,
    /// The login shell.
    pub shell: String,
}

/// The user of that name or number.
#[must_use]
pub fn user(name_or_number: &str) -> Option<User> {
    find_user(
        &fs::read_to_string("/etc/passwd").unwrap_or_default(),
        name_or_number,
    )
}

/// Whether the machine has a user of that name or number in its list.
#[must_use]
pub fn named_user(name_or_number: &str) -> bool {
    fs::read_to_string("/etc/passwd")
        .unwrap_or_default()
        .lines()
        .any(|line| {
            let mut fields = line.split(':');
            fields.next() == Some(name_or_number) || fields.nth(1) == Some(name_or_number)
        })
}

/// The group of that name or number.
#[must_use]
pub fn group(name_or_number: &str) -> Option<u32> {
    find_group(
        &fs::read_to_string("/etc/group").unwrap_or_default(),
        name_or_number,
    )
}

/// The supplementary groups of a user.
#[must_use]
pub fn groups_of(user: &str) -> Vec<u32> {
    member_of(&fs::read_to_string("/etc/group").unwrap_or_default(), user)
        .map(|(_, gid)| gid)
        .collect()
}

/// Whether a user may act as root: a member of `sudo` or `wheel`.
#[must_use]
pub fn may_act_as_root(uid: u32) -> bool {
    let Some(user) = user(&uid.to_string()) else {
        return uid == 0;
    };
    uid == 0
        || member_of(
            &fs::read_to_string("/etc/group").unwrap_or_default(),
            &user.name,
        )
        .any(|(name, _)| name == "sudo" || name == "wheel")
}

fn find_user(passwd: &str, wanted: &str) -> Option<User> {
    let number = wanted.parse::<u32>().ok();
    let parse = |line: &str| {
        let mut fields = line.split(':');
        Some(User {
            name: fields.next()?.to_owned(),
            uid: fields.nth(1)?.parse().ok()?,
            gid: fields.next()?.parse().ok()?,
            home: fields.nth(1)?.to_owned(),
            shell: fields.next().unwrap_or("/bin/sh").to_owned(),
        })
    };
    let known = passwd
        .lines()
        .filter_map(parse)
        .find(|u| u.name == wanted || Some(u.uid) == number);
    known.or_else(|| {
        number.map(|uid| User {
            name: wanted.to_owned(),
            uid,
            gid: uid,
            home: "/".to_owned(),
            shell: "/bin/sh".to_owned(),
        })
    })
}

fn find_group(group: &str, wanted: &str) -> Option<u32> {
    group
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == wanted).then(|| fields.nth(1)?.parse().ok())?
        })
        .or_else(|| wanted.parse().ok())
}

fn member_of<'a>(group: &'a str, user: &'a str) -> impl Iterator<Item = (String, u32)> + use<'a> {
    group.lines().filter_map(move |line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        fields
            .next()?
            .split(',')
            .any(|member| member == user)
            .then(|| (name.to_owned(), gid))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/sbin/nologin\ncore:x:500:501:Core:/home/core:/bin/bash\nbroken\n";
    const GROUP: &str = "root:x:0:\nsudo:x:27:core,other\ncore:x:501:\nwheel:x:10:other\n";

    #[test]
    fn users_are_found_by_name_and_by_number() {
        let core = find_user(PASSWD, "core").unwrap();
        assert_eq!(
            (core.uid, core.gid, core.home.as_str()),
            (500, 501, "/home/core")
        );
        assert_eq!(find_user(PASSWD, "500").unwrap().name, "core");
        assert_eq!(find_user(PASSWD, "1234").unwrap().gid, 1234);
        assert!(find_user(PASSWD, "broken").is_none());
    }

    #[test]
    fn groups_are_found_and_members_are_whole_names() {
        assert_eq!(find_group(GROUP, "sudo"), Some(27));
        assert_eq!(find_group(GROUP, "77"), Some(77));
        assert_eq!(find_group(GROUP, "nobody"), None);
        assert_eq!(
            member_of(GROUP, "core").map(|(n, _)| n).collect::<Vec<_>>(),
            ["sudo"]
        );
        assert_eq!(member_of(GROUP, "cor").count(), 0);
    }
}
