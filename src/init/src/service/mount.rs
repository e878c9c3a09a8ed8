//! A mount unit as the service that mounts and unmounts it (systemd.mount(5)).

use orlop_unit::problem::Position;
use orlop_unit::{Command, CommandFlags, Mount, Service, ServiceType};

use super::{Phase, State};

fn command(program: &str, words: Vec<String>, ignore_failure: bool) -> Command {
    Command {
        program: program.to_owned(),
        argv0: None,
        words,
        flags: CommandFlags {
            no_expansion: true,
            ignore_failure,
            ..CommandFlags::default()
        },
        at: Position::default(),
    }
}

/// The service: it makes the directory, mounts, stays without a process, and unmounts.
pub(super) fn service(mount: &Mount) -> Service {
    let mode = format!("{:o}", mount.directory_mode);
    let directory = ["-p", "-m", &mode, &mount.place]
        .map(str::to_owned)
        .to_vec();
    let mut options = mount.options.clone();
    if mount.is_bind() && !mount.has_option("bind") && !mount.has_option("rbind") {
        let kind = mount.fs_type.as_deref().unwrap_or("bind");
        options = if options.is_empty() {
            kind.to_owned()
        } else {
            format!("{kind},{options}")
        };
    }
    let mut words = Vec::new();
    if let Some(kind) = mount.fs_type.as_deref().filter(|_| !mount.is_bind()) {
        words.extend(["-t".to_owned(), kind.to_owned()]);
    }
    if !options.is_empty() {
        words.extend(["-o".to_owned(), options]);
    }
    words.extend([mount.what.clone(), mount.place.clone()]);
    let mut unmount = Vec::new();
    if mount.lazy_unmount {
        unmount.push("-l".to_owned());
    }
    if mount.force_unmount {
        unmount.push("-f".to_owned());
    }
    unmount.push(mount.place.clone());
    Service {
        service_type: ServiceType::Oneshot,
        remain_after_exit: true,
        // Where the root is read-only the directory has to be there; mount(8) says so then.
        exec_start_pre: vec![command("mkdir", directory, true)],
        exec_start: vec![command("mount", words, false)],
        exec_stop: vec![command("umount", unmount, false)],
        timeout_start: mount.timeout,
        timeout_stop: mount.timeout,
        ..mount.execution.as_ref().clone()
    }
}

/// The sub-state of a mount unit, in systemd's words.
pub(super) fn sub_state(state: State) -> &'static str {
    match state {
        State::Dead => "dead",
        State::Failed => "failed",
        State::Exited | State::Running | State::Reloading => "mounted",
        State::Commands(Phase::Stop | Phase::StopPost) => "unmounting",
        State::Terminating => "unmounting-sigterm",
        State::Killing => "unmounting-sigkill",
        State::Commands(_) | State::Idle | State::Awaiting | State::AutoRestart => "mounting",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_unit::{Kind, MemoryStore, SpecifierContext, UnitName};

    fn words(directives: &str) -> (Vec<String>, Vec<String>) {
        let store = MemoryStore::new().file("/u/mnt-a.mount", &format!("[Mount]\n{directives}"));
        let context = SpecifierContext::default();
        let loader = orlop_unit::Loader::new(&["/u"], &store, &context).reading_all();
        let loaded = loader.load(&UnitName::parse("mnt-a.mount").unwrap());
        let Kind::Mount(mount) = loaded.unit.expect(directives).kind else {
            panic!("no mount");
        };
        let service = service(&mount);
        (
            service.exec_start[0].words.clone(),
            service.exec_stop[0].words.clone(),
        )
    }

    #[test]
    fn what_is_mounted_is_asked_of_the_programs() {
        let (mount, unmount) =
            words("What=/dev/vdb1\nType=ext4\nOptions=ro,noatime\nLazyUnmount=yes\n");
        assert_eq!(
            mount,
            ["-t", "ext4", "-o", "ro,noatime", "/dev/vdb1", "/mnt/a"]
        );
        assert_eq!(unmount, ["-l", "/mnt/a"]);
        let (mount, _) = words("What=/srv\nType=bind\nOptions=ro\n");
        assert_eq!(mount, ["-o", "bind,ro", "/srv", "/mnt/a"]);
    }
}
