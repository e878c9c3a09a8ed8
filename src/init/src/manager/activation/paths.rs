//! Path units: watching, and looking.

use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use orlop_boot::times;
use orlop_sys::kmsg::Priority;
use orlop_unit::{UnitId, Watch};

use crate::conditions;
use crate::manager::Manager;
use crate::manager::events::token;
use crate::trigger::{Trigger, Watcher, path};

impl Manager {
    pub(in crate::manager) fn path_changed(&mut self, id: UnitId) {
        let Some(Trigger::Path(_, Some(watcher))) = self.trigger_mut(id) else {
            return;
        };
        let mut changed = false;
        while let Ok(events) = watcher.inotify.read_events() {
            changed |= events.iter().any(|event| watcher.own.contains(&event.wd));
        }
        self.look_at_paths(id, changed, false);
    }

    /// Looks at what a path unit watches, and watches on.
    pub(in crate::manager) fn look_at_paths(&mut self, id: UnitId, changed: bool, is_start: bool) {
        self.unpoll(id);
        let now_ns = times::now_ns();
        let index = u64::try_from(id.index()).unwrap_or(0);
        let Some(Trigger::Path(path, held)) = self.trigger_mut(id) else {
            return;
        };
        let watches = path
            .directives()
            .map_or_else(Vec::new, |d| d.watches.clone());
        // First watched, then looked at: what happens in between is not missed.
        let watcher = watch_paths(&watches);
        let exists = watches
            .iter()
            .map(|(watch, path)| holds(*watch, path))
            .collect();
        let verdict = path.look(exists, changed, is_start, now_ns);
        let is_waiting = path.state == path::State::Waiting;
        match watcher {
            Ok(watcher) => *held = is_waiting.then_some(watcher),
            Err(err) => {
                let text = format!("cannot watch its paths: {err}");
                self.log(Priority::Error, id, &text);
            }
        }
        if let (Some(Trigger::Path(_, Some(watcher))), Some(epoll)) = (
            self.entries
                .get(id.index())
                .and_then(|e| e.trigger.as_ref()),
            &self.epoll,
        ) {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, token::PATH | index);
            if let Err(err) = epoll.add(&watcher.inotify, event) {
                self.log(
                    Priority::Error,
                    id,
                    &format!("cannot watch its paths: {err}"),
                );
            }
        }
        match verdict {
            path::Verdict::Wait => {}
            path::Verdict::Start => self.start_triggered(id),
            path::Verdict::TooOften => self.gave_up(id),
        }
    }
}

/// Whether that which is watched for is there; for changes, whether the path exists.
fn holds(watch: Watch, path: &str) -> bool {
    match watch {
        Watch::Exists | Watch::Changed | Watch::Modified => std::fs::symlink_metadata(path).is_ok(),
        Watch::ExistsGlob => conditions::matches_glob(path),
        Watch::DirectoryNotEmpty => {
            std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some())
        }
    }
}

/// Watches each path, and the directories above it, in which it may appear or go.
fn watch_paths(watches: &[(Watch, String)]) -> nix::Result<Watcher> {
    let mut watcher = Watcher {
        inotify: Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?,
        own: Vec::new(),
    };
    let comings = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::from_bits_retain(libc::IN_MASK_ADD);
    for (watch, path) in watches {
        let changes = match watch {
            Watch::Changed => AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_ATTRIB,
            Watch::Modified => {
                AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_MODIFY
            }
            _ => AddWatchFlags::empty(),
        };
        let path = std::path::Path::new(path);
        // What is not there is watched for from above.
        if let Ok(own) = watcher.inotify.add_watch(path, comings | changes)
            && !changes.is_empty()
        {
            watcher.own.push(own);
        }
        for above in path.ancestors().skip(1) {
            let _ = watcher.inotify.add_watch(above, comings);
        }
    }
    Ok(watcher)
}

pub(super) fn make_directory(path: &str, mode: u32) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt as _;
    if std::fs::metadata(path).is_ok() {
        return Ok(());
    }
    std::fs::create_dir_all(path)
        .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)))
        .map_err(|err| format!("cannot make {path}: {err}"))
}
