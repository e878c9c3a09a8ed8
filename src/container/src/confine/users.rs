//! `PrivateUsers=`: a user namespace in which root and the unit's own user are who they are, and everybody else is nobody.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

use crate::report::{During as _, Failure};

/// What writing two short lines may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

const GO_ON: u8 = 1;
const GIVE_UP: u8 = 0;

/// Puts this process into a user namespace of its own, where it has every capability, and none outside of it.
///
/// Only a process of the namespace above may map more than itself (user_namespaces(7)), so a copy of this one stays there
/// for as long as it takes. Groups have to be set before: setgroups(2) is given up.
pub(super) fn enter(user: u32, group: u32) -> Result<(), Failure> {
    let step = || "make a user namespace (PrivateUsers=)";
    let own = std::process::id();
    let (mut wait, mut tell) = std::io::pipe().during(step)?;
    let above = orlop_sys::fork::start(move |out| {
        let mut answer = [0];
        if wait.read_exact(&mut answer).is_err() || answer != [GO_ON] {
            return;
        }
        for (file, text) in [
            // Before the map of groups, or not at all.
            ("setgroups", "deny".to_owned()),
            ("gid_map", map(group)),
            ("uid_map", map(user)),
        ] {
            if let Err(error) = std::fs::write(format!("/proc/{own}/{file}"), text) {
                let _ = write!(out, "write {file}: {error}");
                return;
            }
        }
    })
    .during(step)?;
    let entered = unshare(CloneFlags::CLONE_NEWUSER);
    let answer = if entered.is_ok() { GO_ON } else { GIVE_UP };
    tell.write_all(&[answer]).during(step)?;
    let report = above.wait(PATIENCE).during(step)?;
    entered.during(step)?;
    if !report.has_ended {
        return Err(Failure::refused(format!("{}: no answer", step())));
    }
    if !report.said.is_empty() {
        let said = String::from_utf8_lossy(&report.said).into_owned();
        return Err(Failure::refused(format!("{}: {said}", step())));
    }
    Ok(())
}

fn map(id: u32) -> String {
    match id {
        0 => "0 0 1\n".to_owned(),
        id => format!("0 0 1\n{id} {id} 1\n"),
    }
}
