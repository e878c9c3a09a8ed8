//! Enabling, disabling, masking and presets.

use orlop_unit::{
    Change, FileState, InstallError, Installer, Loader, MemoryStore, Plan, Presets,
    SpecifierContext, UnitName,
};

const ETC: &str = "/etc/systemd/system";
const LIB: &str = "/usr/lib/systemd/system";

fn names(list: &[&str]) -> Vec<UnitName> {
    list.iter().map(|n| UnitName::parse(n).unwrap()).collect()
}

fn with<T>(store: &MemoryStore, f: impl FnOnce(&Installer<'_, '_, MemoryStore>) -> T) -> T {
    let context = SpecifierContext::default();
    let loader = Loader::new(&[ETC, LIB], store, &context);
    f(&Installer::new(&loader, ETC))
}

/// A plan in short: `+place target`, `-place`.
fn short(plan: &Plan) -> Vec<String> {
    let place = |path: &str| {
        path.strip_prefix("/etc/systemd/system/")
            .unwrap()
            .to_owned()
    };
    plan.changes
        .iter()
        .map(|change| match change {
            Change::Link { path, target } => format!("+{} {target}", place(path)),
            Change::Remove { path } => format!("-{}", place(path)),
        })
        .collect()
}

/// The store after a plan was carried out.
fn done(mut store: MemoryStore, plan: &Plan) -> MemoryStore {
    for change in &plan.changes {
        store = match change {
            Change::Link { path, target } => store.link(path, target),
            Change::Remove { path } => store.without(path),
        };
    }
    store
}

fn store() -> MemoryStore {
    MemoryStore::new()
        .file(&format!("{LIB}/a.service"), "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\nRequiredBy=x.target\nAlias=alias.service\nAlso=a.timer\n")
        .file(&format!("{LIB}/a.timer"), "[Timer]\nOnBootSec=1\n[Install]\nWantedBy=timers.target\n")
        .file(&format!("{LIB}/t@.service"), "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\nDefaultInstance=one\n")
        .file(&format!("{LIB}/u@.service"), "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n")
        .file(&format!("{LIB}/static.service"), "[Service]\nExecStart=/bin/true\n")
        .file(&format!("{LIB}/c.container"), "[Container]\nImage=x\n[Install]\nWantedBy=multi-user.target\n")
        .file(&format!("{ETC}/broken.service"), "[Service]\nExecStart=./x\n[Install]\nWantedBy=multi-user.target\n")
}

#[test]
fn enabling_links_and_disabling_takes_every_link_away() {
    let before = store();
    let plan = with(&before, |i| i.enable(&names(&["a.service"]), false)).unwrap();
    assert_eq!(
        short(&plan),
        [
            "+alias.service /usr/lib/systemd/system/a.service",
            "+multi-user.target.wants/a.service /usr/lib/systemd/system/a.service",
            "+x.target.requires/a.service /usr/lib/systemd/system/a.service",
            "+timers.target.wants/a.timer /usr/lib/systemd/system/a.timer",
        ]
    );
    let after = done(before, &plan).link(
        "/etc/systemd/system/own.target.wants/a.service",
        "/usr/lib/systemd/system/a.service",
    );
    with(&after, |i| {
        assert_eq!(i.enable(&names(&["a.service"]), false).unwrap().changes, []);
        let state = |name: &str| i.state(&UnitName::parse(name).unwrap());
        assert_eq!(state("a.service"), FileState::Enabled);
        assert_eq!(state("alias.service"), FileState::Alias);
        assert_eq!(
            short(&i.disable(&names(&["a.service"])).unwrap()),
            [
                "-alias.service",
                "-multi-user.target.wants/a.service",
                "-own.target.wants/a.service",
                "-timers.target.wants/a.timer",
                "-x.target.requires/a.service"
            ]
        );
    });
}

#[test]
fn templates_are_enabled_by_instance() {
    let before = store();
    let plan = with(&before, |i| {
        i.enable(
            &names(&["t@.service", "t@two.service", "u@three.service"]),
            false,
        )
    })
    .unwrap();
    assert_eq!(
        short(&plan),
        [
            "+multi-user.target.wants/t@one.service /usr/lib/systemd/system/t@.service",
            "+multi-user.target.wants/t@two.service /usr/lib/systemd/system/t@.service",
            "+multi-user.target.wants/u@three.service /usr/lib/systemd/system/u@.service",
        ]
    );
    let plan_of_u = with(&before, |i| i.enable(&names(&["u@.service"]), false)).unwrap();
    assert!(matches!(
        plan_of_u.failures[..],
        [InstallError::Template(_)]
    ));
    let after = done(before, &plan);
    with(&after, |i| {
        assert_eq!(i.state(&names(&["t@two.service"])[0]), FileState::Enabled);
        assert_eq!(i.state(&names(&["t@none.service"])[0]), FileState::Disabled);
        assert_eq!(i.state(&names(&["t@.service"])[0]), FileState::Enabled);
        assert_eq!(
            short(&i.disable(&names(&["t@two.service"])).unwrap()),
            ["-multi-user.target.wants/t@two.service"]
        );
        assert_eq!(i.disable(&names(&["t@.service"])).unwrap().changes.len(), 2);
    });
}

#[test]
fn masking_is_undone_by_unmasking() {
    let before = store();
    let plan = with(&before, |i| {
        i.mask(&names(&["a.service", "nowhere.service"]))
    });
    assert_eq!(
        short(&plan),
        ["+a.service /dev/null", "+nowhere.service /dev/null"]
    );
    let after = done(before, &plan);
    with(&after, |i| {
        assert_eq!(i.state(&names(&["a.service"])[0]), FileState::Masked);
        assert!(matches!(
            i.enable(&names(&["a.service"]), false),
            Err(InstallError::Masked(_))
        ));
        assert_eq!(
            short(&i.unmask(&names(&["a.service", "a.timer"]))),
            ["-a.service"]
        );
        assert_eq!(i.disable(&names(&["a.timer"])).unwrap().changes, []);
    });
    let plan = with(&store(), |i| i.mask(&names(&["broken.service"])));
    assert!(plan.changes.is_empty());
    let error = &plan.failures[0];
    assert_eq!(
        error.to_string(),
        "/etc/systemd/system/broken.service exists and is a file"
    );
}

#[test]
fn what_cannot_be_enabled_says_why() {
    with(&store(), |i| {
        let plan = i.enable(&names(&["static.service"]), false).unwrap();
        assert!(plan.changes.is_empty() && plan.notes[0].contains("no [Install] section"));
        assert_eq!(i.state(&names(&["static.service"])[0]), FileState::Static);
        assert!(matches!(
            i.enable(&names(&["none.service"]), false),
            Err(InstallError::NotFound(_))
        ));
        assert_eq!(i.state(&names(&["none.service"])[0]), FileState::NotFound);
        assert!(matches!(
            i.enable(&names(&["c.service"]), false),
            Err(InstallError::Generated(_))
        ));
        assert_eq!(i.state(&names(&["c.service"])[0]), FileState::Generated);
        // A unit that does not load can be enabled all the same.
        assert_eq!(
            i.enable(&names(&["broken.service"]), false)
                .unwrap()
                .changes
                .len(),
            1
        );
    });
    let taken = store().link("/etc/systemd/system/alias.service", "/x/b.service");
    with(&taken, |i| {
        let plan = i.enable(&names(&["a.service"]), false).unwrap();
        assert_eq!(plan.changes.len(), 3);
        let error = &plan.failures[0];
        assert_eq!(
            error.to_string(),
            "/etc/systemd/system/alias.service exists and leads to /x/b.service"
        );
        assert_eq!(
            i.enable(&names(&["a.service"]), true)
                .unwrap()
                .changes
                .len(),
            4
        );
    });
}

#[test]
fn presets_enable_and_disable() {
    let mut presets = Presets::default();
    assert!(
        presets
            .add("enable t@.service x y\ndisable a.*\n")
            .is_empty()
    );
    let before = store().link(
        "/etc/systemd/system/timers.target.wants/a.timer",
        "/usr/lib/systemd/system/a.timer",
    );
    let plan = with(&before, |i| {
        i.preset(&names(&["t@.service", "a.timer", "u@z.service"]), &presets)
    })
    .unwrap();
    assert_eq!(
        short(&plan),
        [
            "+multi-user.target.wants/t@x.service /usr/lib/systemd/system/t@.service",
            "+multi-user.target.wants/t@y.service /usr/lib/systemd/system/t@.service",
            "-timers.target.wants/a.timer",
            "+multi-user.target.wants/u@z.service /usr/lib/systemd/system/u@.service",
        ]
    );
}
