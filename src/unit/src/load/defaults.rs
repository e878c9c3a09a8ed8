//! The edges that no file asks for: `DefaultDependencies=yes`, and those that follow from what a unit is
//! (`systemd.service(5)` and its sisters, "Automatic Dependencies").

use super::kinds;
use crate::name::{UnitName, UnitType};
use crate::timer::Trigger;
use crate::unit::{Dependency, Kind, Relation};

/// Where edges are gathered.
pub(super) struct Edges<'a> {
    name: &'a UnitName,
    list: &'a mut Vec<Dependency>,
    mounts: &'a mut Vec<String>,
}

impl<'a> Edges<'a> {
    pub(super) fn new(
        name: &'a UnitName,
        list: &'a mut Vec<Dependency>,
        mounts: &'a mut Vec<String>,
    ) -> Self {
        Self { name, list, mounts }
    }

    fn add(&mut self, relation: Relation, on: &str) {
        if self.name.as_str() != on
            && let Ok(on) = UnitName::parse(on)
        {
            self.list.push(Dependency { relation, on });
        }
    }

    fn all(&mut self, edges: &[(Relation, &str)]) {
        for (relation, on) in edges {
            self.add(*relation, on);
        }
    }

    fn has(&self, relation: Relation, on: &str) -> bool {
        let mut edges = self.list.iter();
        edges.any(|edge| edge.relation == relation && edge.on.as_str() == on)
    }

    /// What follows from what the unit is, `DefaultDependencies=` or not.
    pub(super) fn implicit(&mut self, kind: &Kind) {
        match kind {
            Kind::Timer(timer) => {
                self.add(Relation::Triggers, timer.unit.as_str());
                self.add(Relation::Before, timer.unit.as_str());
                if timer.persistent {
                    self.mounts.push(TIMER_STAMPS.to_owned());
                }
            }
            Kind::Path(path) => {
                self.add(Relation::Triggers, path.unit.as_str());
                self.add(Relation::Before, path.unit.as_str());
                let watched = path.watches.iter().map(|(_, path)| path.clone());
                self.mounts.extend(watched);
            }
            Kind::Socket(socket) => {
                // A template is only instantiated when somebody connects.
                if !socket.service.is_template() {
                    self.add(Relation::Triggers, socket.service.as_str());
                    self.add(Relation::Before, socket.service.as_str());
                }
                let paths = kinds::socket_paths(socket).map(str::to_owned);
                self.mounts.extend(paths);
            }
            Kind::Mount(mount) => {
                if let Some((parent, _)) = mount.place.rsplit_once('/')
                    && mount.place != "/"
                {
                    let parent = if parent.is_empty() { "/" } else { parent };
                    self.mounts.push(parent.to_owned());
                }
                if mount.what.starts_with('/') && mount.is_bind() {
                    self.mounts.push(mount.what.clone());
                }
            }
            Kind::Slice(_) => {
                if let Some(parent) = kinds::parent_slice(self.name) {
                    self.all(&[
                        (Relation::Requires, parent.as_str()),
                        (Relation::After, parent.as_str()),
                    ]);
                }
            }
            Kind::Service(service) => {
                if let Some(slice) = &service.slice {
                    self.all(&[
                        (Relation::Requires, slice.as_str()),
                        (Relation::After, slice.as_str()),
                    ]);
                }
                for socket in &service.sockets {
                    self.all(&[
                        (Relation::Wants, socket.as_str()),
                        (Relation::After, socket.as_str()),
                        (Relation::TriggeredBy, socket.as_str()),
                    ]);
                }
            }
            Kind::Target => {}
        }
    }

    /// `DefaultDependencies=yes`.
    pub(super) fn default(&mut self, kind: &Kind) {
        const EARLY: [(Relation, &str); 2] = [
            (Relation::Requires, "sysinit.target"),
            (Relation::After, "sysinit.target"),
        ];
        match kind {
            Kind::Service(_) => {
                self.all(&EARLY);
                self.add(Relation::After, "basic.target");
            }
            Kind::Timer(timer) => {
                self.add(Relation::Before, "timers.target");
                self.all(&EARLY);
                let calendar = |trigger: &Trigger| matches!(trigger, Trigger::Calendar(_));
                if timer.triggers.iter().any(calendar) {
                    self.add(Relation::After, "time-sync.target");
                    self.add(Relation::After, "time-set.target");
                }
            }
            Kind::Path(_) => {
                self.add(Relation::Before, "paths.target");
                self.all(&EARLY);
            }
            Kind::Socket(_) => {
                self.add(Relation::Before, "sockets.target");
                self.all(&EARLY);
            }
            Kind::Mount(mount) => return self.default_of_mount(mount),
            Kind::Target | Kind::Slice(_) => {}
        }
        self.all(&[
            (Relation::Conflicts, "shutdown.target"),
            (Relation::Before, "shutdown.target"),
        ]);
    }

    fn default_of_mount(&mut self, mount: &crate::Mount) {
        // These are there before PID 1 is, and stay until the end.
        if matches!(mount.place.as_str(), "/" | "/usr") {
            return;
        }
        let (target, before_target) = if mount.is_remote() {
            ("remote-fs.target", "remote-fs-pre.target")
        } else {
            ("local-fs.target", "local-fs-pre.target")
        };
        if !mount.has_option("nofail") && !self.has(Relation::Before, target) {
            self.add(Relation::Before, target);
        }
        self.add(Relation::After, before_target);
        if mount.is_remote() {
            self.all(&[
                (Relation::After, "network.target"),
                (Relation::Wants, "network-online.target"),
                (Relation::After, "network-online.target"),
            ]);
        }
        if mount.fs_type.as_deref() == Some("tmpfs") {
            self.add(Relation::After, "swap.target");
        }
        self.all(&[
            (Relation::Conflicts, "umount.target"),
            (Relation::Before, "umount.target"),
        ]);
    }
}

/// Where the last runs of persistent timers are kept.
const TIMER_STAMPS: &str = "/var/lib/orlop/timers";

/// Slices have no files as a rule: those that are named come into being by their name.
pub(super) fn is_made_by_name(name: &UnitName) -> bool {
    name.kind() == UnitType::Slice && kinds::check_slice(name).is_ok()
}
