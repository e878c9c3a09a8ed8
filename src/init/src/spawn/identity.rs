//! Who a unit's processes are.

use std::fs;

use orlop_unit::{Command, Service, ServiceResult, Unit};

use super::Failure;
use crate::accounts;

#[derive(Debug)]
pub(super) struct Identity {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
    pub(super) shell: String,
}

pub(super) fn resolve_user(
    unit: &Unit,
    service: &Service,
    command: &Command,
) -> Result<Option<Identity>, Failure> {
    if command.flags.full_privileges || command.flags.keep_user {
        return Ok(None);
    }
    unit_user(unit, service)
}

/// Who the unit's processes are, unless a command says otherwise; `None` is root.
pub(super) fn unit_user(unit: &Unit, service: &Service) -> Result<Option<Identity>, Failure> {
    if service.confinement.dynamic_user {
        let name = service.user.as_deref();
        let stem = unit.name.prefix().trim_end_matches('@');
        if let Some(user) = dynamic_user(name.unwrap_or(stem))? {
            return with_groups(service, user).map(Some);
        }
    }
    if service.user.is_none() && service.group.is_none() {
        return Ok(None);
    }
    let wanted = service.user.as_deref().unwrap_or("0");
    let user = accounts::user(wanted).ok_or_else(|| Failure {
        result: ServiceResult::ExitCode,
        text: format!("User={wanted}: there is no such user (status 217/USER)"),
    })?;
    let gid = match &service.group {
        Some(name) => find_group(name)?,
        None => user.gid,
    };
    with_groups(
        service,
        Identity {
            uid: user.uid,
            gid,
            groups: accounts::groups_of(&user.name),
            home: user.home,
            shell: user.shell,
            name: user.name,
        },
    )
    .map(Some)
}

fn find_group(name: &str) -> Result<u32, Failure> {
    accounts::group(name).ok_or_else(|| Failure {
        result: ServiceResult::ExitCode,
        text: format!("Group={name}: there is no such group (status 216/GROUP)"),
    })
}

fn with_groups(service: &Service, mut user: Identity) -> Result<Identity, Failure> {
    for name in &service.supplementary_groups {
        user.groups.push(find_group(name)?);
    }
    user.groups.push(user.gid);
    Ok(user)
}

/// The numbers that `DynamicUser=` takes (systemd's `UIDS-GIDS.md`).
const DYNAMIC: std::ops::RangeInclusive<u32> = 61_184..=65_519;
/// Which of them are given to whom: a file for each, with the name. They are kept while the machine is up.
const DYNAMIC_USERS: &str = "/run/orlop/dynamic-users";

/// The user of that name, made for the time that the machine is up; `None` when the machine has one of that name of its own.
///
/// The number follows from the name, so that it is the same at the next boot unless another name has it.
fn dynamic_user(name: &str) -> Result<Option<Identity>, Failure> {
    if accounts::named_user(name) {
        return Ok(None);
    }
    let none = |what: String| Failure::resources(format!("DynamicUser=: {what}"));
    fs::create_dir_all(DYNAMIC_USERS).map_err(|err| none(format!("{DYNAMIC_USERS}: {err}")))?;
    let size = DYNAMIC
        .end()
        .saturating_sub(*DYNAMIC.start())
        .saturating_add(1);
    // FNV-1a: it only has to spread names.
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    for step in 0..size {
        let offset = hash.wrapping_add(step).checked_rem(size).unwrap_or(0);
        let uid = DYNAMIC.start().saturating_add(offset);
        let path = format!("{DYNAMIC_USERS}/{uid}");
        match fs::read_to_string(&path) {
            Ok(owner) if owner == name => {}
            Ok(_) => continue,
            Err(_) if accounts::named_user(&uid.to_string()) => continue,
            Err(_) => fs::write(&path, name).map_err(|err| none(format!("{path}: {err}")))?,
        }
        return Ok(Some(Identity {
            name: name.to_owned(),
            uid,
            gid: uid,
            groups: Vec::new(),
            home: "/".to_owned(),
            shell: "/usr/sbin/nologin".to_owned(),
        }));
    }
    Err(none("no number is left".to_owned()))
}
