//! The unit files that the root image brings, read by the code that will run them.

use std::path::Path;

use orlop_unit::{
    Graph, Jobs, LoadState, Loader, MemoryStore, Mode, Request, SpecifierContext, UnitName,
};

const UNITS: &str = "/usr/lib/orlop/units";

/// The unit directory of the root: the files of `rootfs/files` and the links of `rootfs/links`.
fn store() -> MemoryStore {
    let project = orlop_qemu::image::Project::here();
    let mut store = MemoryStore::new();
    for entry in std::fs::read_dir(
        project
            .path("rootfs/files")
            .join(UNITS.trim_start_matches('/')),
    )
    .unwrap()
    {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        store = store.file(
            &format!("{UNITS}/{name}"),
            &std::fs::read_to_string(&path).unwrap(),
        );
    }
    for line in std::fs::read_to_string(project.path("rootfs/links"))
        .unwrap()
        .lines()
    {
        let mut words = line.split_whitespace();
        if let (Some(path), Some(target)) = (words.next(), words.next())
            && Path::new(path).parent() == Some(Path::new(UNITS))
        {
            store = store.link(path, target);
        }
    }
    store
}

fn with_graph(test: impl FnOnce(&mut Graph, &mut dyn FnMut(&UnitName) -> orlop_unit::Loaded)) {
    let store = store();
    let context = SpecifierContext::default();
    let loader = Loader::new(&[UNITS], &store, &context);
    test(&mut Graph::new(), &mut |name| loader.load(name));
}

#[test]
fn every_unit_of_the_root_loads_without_a_problem() {
    let store = store();
    let context = SpecifierContext::default();
    let loader = Loader::new(&[UNITS], &store, &context);
    let mut names: Vec<UnitName> = loader.names().collect();
    names.push(UnitName::parse("console-shell@ttyS0.service").unwrap());
    assert!(names.len() > 10);
    for name in names.iter().filter(|name| !name.is_template()) {
        let loaded = loader.load(name);
        assert_eq!(loaded.problems, [], "{}", name.as_str());
        assert!(loaded.unit.is_some(), "{}", name.as_str());
    }
}

#[test]
fn the_default_target_starts_the_roles_and_waits_for_none_that_is_missing() {
    with_graph(|graph, source| {
        let target = graph.load(&UnitName::parse("multi-user.target").unwrap(), source);
        let mut jobs = Jobs::new();
        jobs.request(graph, Request::Start, target, Mode::Replace)
            .unwrap();
        for name in [
            "orlop-journal.service",
            "orlop-devices.service",
            "orlop-net.service",
            "orlop-store.service",
            "sshd.service",
        ] {
            let unit = graph.find(name).unwrap();
            assert!(
                matches!(graph.load_state(unit), LoadState::Loaded(_)),
                "{name}"
            );
            assert!(jobs.job_of(unit).is_some(), "{name}");
        }
    });
}

#[test]
fn old_names_lead_to_the_roles() {
    with_graph(|graph, source| {
        for (alias, real) in [
            ("etcd2.service", "orlop-store.service"),
            ("etcd-member.service", "orlop-store.service"),
            ("systemd-networkd.service", "orlop-net.service"),
            ("ssh.service", "sshd.service"),
        ] {
            let unit = graph.load(&UnitName::parse(alias).unwrap(), &mut *source);
            assert_eq!(graph.name(unit).as_str(), real, "{alias}");
        }
    });
}
