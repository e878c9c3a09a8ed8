//! `systemctl --root=… enable|disable|mask|unmask`: the links that are there afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use orlop_unit::{Change, Installer, Loader, MemoryStore, SpecifierContext, UnitName};
use proptest::prelude::*;

const ETC: &str = "/etc/systemd/system";
const LIB: &str = "/usr/lib/systemd/system";
const UNITS: [&str; 5] = [
    "a.service",
    "b.service",
    "c.timer",
    "t@.service",
    "d.target",
];
const NAMES: [&str; 6] = [
    "a.service",
    "b.service",
    "c.timer",
    "t@.service",
    "t@x.service",
    "d.target",
];

#[derive(Clone, Copy, Debug)]
enum Verb {
    Enable,
    Disable,
    Mask,
    Unmask,
}

/// Every link below a directory: its path from there, and what it holds.
fn links_below(root: &Path, directory: &Path, out: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let place = format!("/{}", path.strip_prefix(root).expect("below").display());
        match fs::read_link(&path) {
            Ok(target) => {
                out.insert(place, target.display().to_string());
            }
            Err(_) if path.is_dir() => links_below(root, &path, out),
            Err(_) => {}
        }
    }
}

fn install_section() -> impl Strategy<Value = String> {
    let line = prop::sample::select(vec![
        "WantedBy=multi-user.target",
        "WantedBy=x.target y.target",
        "RequiredBy=z.target",
        "Alias=other.service",
        "Also=b.service",
        "Also=c.timer",
        "DefaultInstance=one",
        "WantedBy=",
    ]);
    prop::collection::vec(line, 0..4).prop_map(|lines| lines.join("\n"))
}

fn verb() -> impl Strategy<Value = Verb> {
    prop::sample::select(vec![
        Verb::Enable,
        Verb::Enable,
        Verb::Disable,
        Verb::Mask,
        Verb::Unmask,
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, max_shrink_iters: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_leave_the_same_links(
        sections in prop::collection::vec(install_section(), UNITS.len()),
        commands in prop::collection::vec((verb(), 0..NAMES.len()), 1..6),
    ) {
        let root = tempfile::tempdir().expect("a directory");
        let mut store = MemoryStore::new();
        fs::create_dir_all(root.path().join(&LIB[1..])).expect("a directory");
        fs::create_dir_all(root.path().join(&ETC[1..])).expect("a directory");
        for (name, section) in UNITS.iter().zip(&sections) {
            let text = format!("[Install]\n{section}\n");
            fs::write(root.path().join(format!("{}/{name}", &LIB[1..])), &text).expect("a file");
            store = store.file(&format!("{LIB}/{name}"), &text);
        }
        let context = SpecifierContext::default();
        let mut ours = BTreeMap::new();
        for (verb, name) in &commands {
            let name = UnitName::parse(NAMES[*name]).expect("a name");
            // systemd 252 unmasks an instance when its template is disabled; here a mask stays until it is taken off.
            if matches!(verb, Verb::Mask) && name.instance().is_some_and(|i| !i.is_empty()) {
                continue;
            }
            let one = std::slice::from_ref(&name);
            let plan = {
                let loader = Loader::new(&[ETC, LIB], &store, &context);
                let installer = Installer::new(&loader, ETC);
                match verb {
                    Verb::Enable => installer.enable(one, false),
                    Verb::Disable => installer.disable(one),
                    Verb::Mask => Ok(installer.mask(one)),
                    Verb::Unmask => Ok(installer.unmask(one)),
                }
            };
            for change in plan.map(|plan| plan.changes).unwrap_or_default() {
                match change {
                    Change::Link { path, target } => {
                        store = store.link(&path, &target);
                        ours.insert(path, target);
                    }
                    Change::Remove { path } => {
                        store = store.without(&path);
                        ours.remove(&path);
                    }
                }
            }
            let word = match verb {
                Verb::Enable => "enable",
                Verb::Disable => "disable",
                Verb::Mask => "mask",
                Verb::Unmask => "unmask",
            };
            let output = Command::new("systemctl")
                .arg(format!("--root={}", root.path().display()))
                .args([word, name.as_str()])
                .output()
                .expect("systemctl (Debian package systemd)");
            let mut theirs = BTreeMap::new();
            links_below(root.path(), &root.path().join(&ETC[1..]), &mut theirs);
            prop_assert_eq!(&ours, &theirs, "{} {}: {}", word, name, String::from_utf8_lossy(&output.stderr));
        }
    }
}
