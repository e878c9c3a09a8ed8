//! Users and their keys: the image's account files with the configuration's users merged in.

use std::collections::HashSet;

use super::{Base, Owner, Plan, PlannedDirectory, PlannedFile};
use crate::input::built_in;
use crate::machine::{Machine, User};
use crate::problem::{Problem, Source, Sourced, quoted};

/// The user that is always there, for logins. CoreOS gave it this number too.
const LOGIN_USER: &str = "core";
const LOGIN_UID: u32 = 500;

/// The account files as they will be.
pub(super) struct Accounts {
    passwd: Lines,
    group: Lines,
    shadow: Lines,
}

/// A file of lines with `:` between fields. Lines that are not understood are kept as they are.
struct Lines {
    lines: Vec<Vec<String>>,
    changed: bool,
}

impl Lines {
    fn parse(text: &str) -> Self {
        let fields = |line: &str| line.split(':').map(str::to_owned).collect();
        Self {
            lines: text
                .lines()
                .filter(|line| !line.is_empty())
                .map(fields)
                .collect(),
            changed: false,
        }
    }

    fn find(&self, name: &str) -> Option<&Vec<String>> {
        self.lines
            .iter()
            .find(|fields| fields.first().is_some_and(|f| f == name))
    }

    fn find_mut(&mut self, name: &str) -> Option<&mut Vec<String>> {
        self.lines
            .iter_mut()
            .find(|fields| fields.first().is_some_and(|f| f == name))
    }

    fn push(&mut self, fields: &[&str]) {
        self.changed = true;
        self.lines
            .push(fields.iter().map(|f| (*f).to_owned()).collect());
    }

    /// The numbers in the third field, which passwd and group share.
    fn numbers(&self) -> impl Iterator<Item = u32> {
        self.lines
            .iter()
            .filter_map(|fields| fields.get(2)?.parse().ok())
    }

    fn text(&self) -> String {
        self.lines
            .iter()
            .map(|fields| fields.join(":") + "\n")
            .collect()
    }
}

impl Accounts {
    /// The owner that `USER` or `USER:GROUP` names, or the name that is not known.
    pub(super) fn owner(&self, text: &str) -> Result<Owner, String> {
        let (user, group) = text.split_once([':', '.']).unwrap_or((text, ""));
        let number =
            |fields: &Vec<String>, at: usize| fields.get(at).and_then(|f| f.parse::<u32>().ok());
        let account = self.passwd.find(user);
        let uid = match account {
            Some(fields) => number(fields, 2),
            None if user.is_empty() => Some(0),
            None => user.parse().ok(),
        };
        let gid = match self.group.find(group) {
            Some(fields) => number(fields, 2),
            // As chown(1): a user alone leaves the group to that user's own.
            None if group.is_empty() => account.map_or(Some(0), |fields| number(fields, 3)),
            None => group.parse().ok(),
        };
        match (uid, gid) {
            (Some(uid), Some(gid)) => Ok(Owner { uid, gid }),
            (None, _) => Err(quoted(user)),
            (_, None) => Err(quoted(group)),
        }
    }

    fn home(&self, user: &str) -> Option<&str> {
        self.passwd.find(user)?.get(5).map(String::as_str)
    }
}

pub(super) fn compile(machine: &Machine, base: &Base<'_>, plan: &mut Plan) -> Accounts {
    let mut accounts = Accounts {
        passwd: Lines::parse(base.passwd),
        group: Lines::parse(base.group),
        shadow: Lines::parse(base.shadow),
    };
    if accounts.passwd.find(LOGIN_USER).is_none() {
        let login = User {
            name: Some(built_in(LOGIN_USER.to_owned())),
            uid: Some(built_in(LOGIN_UID)),
            ..User::default()
        };
        add(&login, base, &mut accounts, plan);
    }
    for user in &machine.users {
        add(user, base, &mut accounts, plan);
    }
    for (path, lines, mode) in [
        ("/etc/passwd", &accounts.passwd, 0o644),
        ("/etc/group", &accounts.group, 0o644),
        ("/etc/shadow", &accounts.shadow, 0o600),
    ] {
        if lines.changed {
            plan.file(path, lines.text(), mode, &Source::default());
        }
    }
    keys(machine, &accounts, plan);
    accounts
}

/// Adds a user, or sets the password of one that is there.
fn add(user: &User, base: &Base<'_>, accounts: &mut Accounts, plan: &mut Plan) {
    let Some(name) = &user.name else { return };
    if let Err(why) = check(user) {
        plan.problems.push(why);
        return;
    }
    let name = name.value.as_str();
    if accounts.passwd.find(name).is_none() {
        let numbers = || accounts.passwd.numbers().chain(accounts.group.numbers());
        let uid = match &user.uid {
            Some(uid) => uid.value,
            None => free_number(is(&user.system), numbers()),
        };
        let gid = first_group(user, name, uid, accounts);
        let home = user
            .homedir
            .as_ref()
            .map_or_else(|| format!("/home/{name}"), |h| h.value.clone());
        let gecos = user.gecos.as_ref().map_or("", |g| g.value.as_str());
        let shell = user.shell.as_ref().map_or(base.shell, |s| s.value.as_str());
        accounts.passwd.push(&[
            name,
            "x",
            &uid.to_string(),
            &gid.to_string(),
            gecos,
            &home,
            shell,
        ]);
        // `*`: no password fits, and unlike `!` no program takes the account for a locked one.
        accounts
            .shadow
            .push(&[name, "*", "", "", "", "", "", "", ""]);
        for group in user
            .groups
            .iter()
            .flat_map(|groups| groups.value.split(','))
            .map(str::trim)
        {
            join(name, group, accounts);
        }
        if !is(&user.no_create_home) {
            plan.directories.push(PlannedDirectory {
                path: home,
                mode: 0o750,
                owner: Owner { uid, gid },
            });
        }
    }
    if let Some(passwd) = &user.passwd {
        accounts.shadow.changed = true;
        match accounts
            .shadow
            .find_mut(name)
            .and_then(|fields| fields.get_mut(1))
        {
            Some(hash) => *hash = passwd.value.reveal().to_owned(),
            None => {
                accounts
                    .shadow
                    .push(&[name, passwd.value.reveal(), "", "", "", "", "", "", ""])
            }
        }
    }
}

fn is(flag: &Option<Sourced<bool>>) -> bool {
    flag.as_ref().is_some_and(|flag| flag.value)
}

/// The number of the user's first group, which is made when it is not there.
fn first_group(user: &User, name: &str, uid: u32, accounts: &mut Accounts) -> u32 {
    let group = match &user.primary_group {
        Some(group) => group.value.as_str(),
        // useradd(8) puts users without a group of their own into `users`, 100.
        None if is(&user.no_user_group) => "users",
        None => name,
    };
    let there = accounts
        .group
        .find(group)
        .and_then(|fields| fields.get(2)?.parse().ok());
    there.unwrap_or_else(|| {
        let is_taken = |number| accounts.group.numbers().any(|n| n == number);
        let gid = match is_taken(uid) || group != name {
            true => free_number(
                is(&user.system),
                accounts.passwd.numbers().chain(accounts.group.numbers()),
            ),
            false => uid,
        };
        accounts.group.push(&[group, "x", &gid.to_string(), ""]);
        gid
    })
}

fn join(name: &str, group: &str, accounts: &mut Accounts) {
    if !is_account_name(group) {
        return;
    }
    if accounts.group.find(group).is_none() {
        let gid = free_number(
            true,
            accounts.passwd.numbers().chain(accounts.group.numbers()),
        );
        accounts.group.push(&[group, "x", &gid.to_string(), ""]);
    }
    accounts.group.changed = true;
    let members = accounts
        .group
        .find_mut(group)
        .and_then(|fields| fields.get_mut(3));
    if let Some(members) =
        members.filter(|members| !members.split(',').any(|member| member == name))
    {
        if !members.is_empty() {
            members.push(',');
        }
        members.push_str(name);
    }
}

/// The lowest number in its range that is not taken: 201 to 999 for the system's, 1000 to 59999 for people (login.defs(5)).
fn free_number(is_system: bool, taken: impl Iterator<Item = u32>) -> u32 {
    let range = if is_system { 201..=999 } else { 1000..=59_999 };
    let taken: HashSet<u32> = taken.collect();
    let beyond = range.end() + 1;
    range
        .into_iter()
        .find(|number| !taken.contains(number))
        .unwrap_or(beyond)
}

fn is_account_name(name: &str) -> bool {
    let is_first = |b: u8| b.is_ascii_lowercase() || b == b'_';
    name.len() <= 32
        && name.bytes().next().is_some_and(is_first)
        && name
            .bytes()
            .all(|b| is_first(b) || b.is_ascii_digit() || b == b'-')
}

/// Whether the user's fields fit into a line of passwd(5).
fn check(user: &User) -> Result<(), Problem> {
    let name = user.name.iter().chain(&user.primary_group);
    if let Some(bad) = name.into_iter().find(|name| !is_account_name(&name.value)) {
        let message = format!(
            "{} is not a user's or group's name; the user is skipped",
            quoted(&bad.value)
        );
        return Err(Problem::error(&bad.source, message));
    }
    let is_field = |text: &str| !text.contains(|c: char| c == ':' || c.is_control());
    let mut fields = user.gecos.iter().chain(&user.homedir).chain(&user.shell);
    if let Some(bad) = fields.find(|field| !is_field(&field.value)) {
        let message = format!(
            "{} does not fit into /etc/passwd; the user is skipped",
            quoted(&bad.value)
        );
        return Err(Problem::error(&bad.source, message));
    }
    let mut paths = user.homedir.iter().chain(&user.shell);
    if let Some(bad) =
        paths.find(|path| !path.value.starts_with('/') || path.value.split('/').any(|p| p == ".."))
    {
        let message = format!(
            "{} is not an absolute path; the user is skipped",
            quoted(&bad.value)
        );
        return Err(Problem::error(&bad.source, message));
    }
    Ok(())
}

/// `authorized_keys` of each user who has keys.
fn keys(machine: &Machine, accounts: &Accounts, plan: &mut Plan) {
    let login = machine
        .ssh_authorized_keys
        .0
        .iter()
        .map(|key| (LOGIN_USER, key));
    let of_users = machine
        .users
        .iter()
        .filter_map(|user| Some((user.name.as_ref()?, user)));
    let of_users = of_users.flat_map(|(name, user)| {
        user.ssh_authorized_keys
            .0
            .iter()
            .map(|key| (name.value.as_str(), key))
    });
    let mut files: Vec<(&str, Vec<&str>, &Source)> = Vec::new();
    for (user, key) in login.chain(of_users) {
        let line = key.value.as_str();
        match files.iter_mut().find(|(name, ..)| *name == user) {
            Some((_, lines, _)) if lines.contains(&line) => {}
            Some((_, lines, _)) => lines.push(line),
            None => files.push((user, vec![line], &key.source)),
        }
    }
    for (user, lines, source) in files {
        let (Some(home), Ok(owner)) = (accounts.home(user), accounts.owner(user)) else {
            continue;
        };
        let directory = format!("{}/.ssh", home.trim_end_matches('/'));
        if !plan.directories.iter().any(|d| d.path == home) {
            plan.directories.push(PlannedDirectory {
                path: home.to_owned(),
                mode: 0o750,
                owner,
            });
        }
        plan.directories.push(PlannedDirectory {
            path: directory.clone(),
            mode: 0o700,
            owner,
        });
        plan.files.push(PlannedFile {
            path: format!("{directory}/authorized_keys"),
            content: (lines.join("\n") + "\n").into_bytes(),
            mode: 0o600,
            owner,
            append: false,
            source: source.clone(),
        });
    }
}
