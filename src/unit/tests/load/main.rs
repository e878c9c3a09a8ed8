//! Unit files as users write them, read through a store in memory.

mod quadlet;

use std::time::Duration;

use orlop_unit::{
    Dependency, KillMode, Limit, Loaded, Loader, MemoryStore, Relation, Restart, Service,
    ServiceType, Severity, Signal, SpecifierContext, Unit, UnitName,
};

const DIRECTORIES: [&str; 4] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/etc/containers/systemd",
    "/usr/lib/orlop/units",
];

fn load(store: &MemoryStore, name: &str) -> Loaded {
    let context = SpecifierContext {
        hostname: "node1".into(),
        ..SpecifierContext::default()
    };
    Loader::new(&DIRECTORIES, store, &context).load(&UnitName::parse(name).unwrap())
}

/// The service that a file with this text describes, together with what was found.
fn read(text: &str) -> Loaded {
    load(
        &MemoryStore::new().file("/etc/systemd/system/a.service", text),
        "a.service",
    )
}

fn messages(loaded: &Loaded) -> Vec<String> {
    loaded.problems.iter().map(ToString::to_string).collect()
}

#[track_caller]
fn good(loaded: Loaded) -> Unit {
    assert_eq!(messages(&loaded), [""; 0]);
    loaded.unit.expect("a unit")
}

#[track_caller]
fn service(loaded: Loaded) -> Service {
    good(loaded).service().expect("a service").as_ref().clone()
}

/// The one error that keeps this text from loading.
#[track_caller]
fn refusal(text: &str) -> String {
    let loaded = read(text);
    assert!(loaded.unit.is_none(), "{text}");
    let errors: Vec<_> = loaded
        .problems
        .iter()
        .filter(|p| p.severity == Severity::Error)
        .collect();
    assert_eq!(errors.len(), 1, "{text}: {errors:?}");
    errors[0].to_string()
}

/// The warnings of a text that loads all the same.
#[track_caller]
fn warnings(text: &str) -> Vec<String> {
    let loaded = read(text);
    assert!(loaded.unit.is_some(), "{:?}", loaded.problems);
    messages(&loaded)
}

fn has(unit: &Unit, relation: Relation, on: &str) -> bool {
    unit.dependencies.contains(&Dependency {
        relation,
        on: UnitName::parse(on).unwrap(),
    })
}

#[test]
fn the_unit_of_the_docker_era_loads_whole() {
    let unit = good(read(
        "[Unit]\n\
         Description=My Web\n\
         After=docker.service etcd2.service\n\
         Requires=docker.service\n\
         \n\
         [Service]\n\
         TimeoutStartSec=0\n\
         EnvironmentFile=-/etc/environment\n\
         ExecStartPre=-/usr/bin/docker kill web\n\
         ExecStartPre=/usr/bin/docker pull busybox\n\
         ExecStart=/usr/bin/docker run --name web \\\n  # the port\n  -p 80:80 busybox /bin/sh -c \"while true; do echo '$$HOME ${X}'; sleep 1; done\"\n\
         ExecStop=/usr/bin/docker stop web\n\
         Restart=always\n\
         RestartSec=10s\n\
         \n\
         [X-Fleet]\n\
         Conflicts=web@*.service\n\
         [Install]\n\
         WantedBy=multi-user.target\n",
    ));
    assert!(
        has(&unit, Relation::Requires, "docker.service")
            && has(&unit, Relation::After, "etcd2.service")
    );
    assert!(
        has(&unit, Relation::Requires, "sysinit.target")
            && has(&unit, Relation::Conflicts, "shutdown.target")
    );
    assert_eq!(unit.install.wanted_by[0].as_str(), "multi-user.target");
    let service = unit.service().unwrap();
    assert_eq!(
        (service.timeout_start, service.timeout_stop),
        (None, Some(Duration::from_secs(90)))
    );
    assert_eq!(
        (service.restart, service.restart_delay),
        (Restart::Always, Duration::from_secs(10))
    );
    assert!(
        service.exec_start_pre[0].flags.ignore_failure
            && !service.exec_start_pre[1].flags.ignore_failure
    );
    assert!(service.environment_files[0].optional);
    let env = [("X".to_owned(), "a b".to_owned())];
    let argv = service.exec_start[0].expand(&env[..]);
    assert_eq!(
        argv[1..],
        [
            "run",
            "--name",
            "web",
            "-p",
            "80:80",
            "busybox",
            "/bin/sh",
            "-c",
            "while true; do echo '$HOME a b'; sleep 1; done"
        ]
    );
}

#[test]
fn drop_ins_apply_by_file_name_and_the_higher_directory_hides_the_lower() {
    let store = MemoryStore::new()
        .file(
            "/usr/lib/orlop/units/web-front@.service",
            "[Service]\nExecStart=/bin/a\nEnvironment=A=0\n",
        )
        .file(
            "/usr/lib/orlop/units/web-front@.service.d/10-x.conf",
            "[Service]\nEnvironment=A=hidden\n",
        )
        .file(
            "/run/systemd/system/web-front@1.service.d/10-x.conf",
            "[Service]\nEnvironment=A=run\n",
        )
        .file(
            "/etc/systemd/system/web-.service.d/05-y.conf",
            "[Service]\nEnvironment=A=prefix\n",
        )
        .file(
            "/usr/lib/orlop/units/web-front@.service.d/20-z.conf",
            "[Service]\nExecStart=\nExecStart=/bin/b %i\n",
        )
        .file(
            "/etc/systemd/system/service.d/20-z.conf",
            "[Service]\nExecStart=/bin/never\n",
        )
        .file(
            "/etc/systemd/system/service.d/30-all.conf",
            "[Service]\nEnvironment=A=all\n",
        )
        .file("/etc/systemd/system/web-front@1.service.d/readme.txt", "no")
        .link(
            "/etc/systemd/system/web-front@1.service.d/30-none.conf",
            "/dev/null",
        );
    let unit = good(load(&store, "web-front@1.service"));
    let service = unit.service().unwrap();
    let values: Vec<&str> = service
        .environment
        .iter()
        .map(|(_, v)| v.as_str())
        .collect();
    assert_eq!(values, ["0", "prefix", "run", "all"]);
    assert_eq!(service.exec_start.len(), 1);
    assert_eq!(
        (
            service.exec_start[0].program.as_str(),
            service.exec_start[0].words[0].as_str()
        ),
        ("/bin/b", "1")
    );
    assert_eq!(
        unit.drop_ins,
        [
            "/etc/systemd/system/web-.service.d/05-y.conf",
            "/run/systemd/system/web-front@1.service.d/10-x.conf",
            "/usr/lib/orlop/units/web-front@.service.d/20-z.conf",
            "/etc/systemd/system/service.d/30-all.conf",
        ]
    );
}

#[test]
fn a_higher_directory_wins_and_an_instance_beats_its_template() {
    let store = MemoryStore::new()
        .file(
            "/usr/lib/orlop/units/a@x.service",
            "[Service]\nExecStart=/bin/own\n",
        )
        .file(
            "/etc/systemd/system/a@.service",
            "[Service]\nExecStart=/bin/template %i\n",
        )
        .file(
            "/usr/lib/orlop/units/b.service",
            "[Service]\nExecStart=/bin/low\n",
        )
        .file(
            "/etc/systemd/system/b.service",
            "[Service]\nExecStart=/bin/high\n",
        );
    assert_eq!(
        service(load(&store, "a@x.service")).exec_start[0].program,
        "/bin/own"
    );
    assert_eq!(
        service(load(&store, "a@y.service")).exec_start[0].program,
        "/bin/template"
    );
    assert_eq!(
        service(load(&store, "b.service")).exec_start[0].program,
        "/bin/high"
    );
}

#[test]
fn instances_of_templates_do_not_take_each_others_text() {
    let text = |what: &str| format!("[Unit]\nDescription={what} %i\n[Service]\nExecStart=/bin/x\n");
    let store = MemoryStore::new()
        .file("/etc/systemd/system/a@.service", &text("first"))
        .file("/etc/systemd/system/b@.service", &text("second"))
        .file("/etc/systemd/system/a@own.service", &text("own"));
    let context = SpecifierContext::default();
    let loader = Loader::new(&DIRECTORIES, &store, &context);
    for (name, description) in [
        ("a@1.service", "first 1"),
        ("a@2.service", "first 2"),
        ("b@1.service", "second 1"),
        ("a@own.service", "own own"),
        ("a@3.service", "first 3"),
    ] {
        let unit = good(loader.load(&UnitName::parse(name).unwrap()));
        assert_eq!(unit.description, description, "{name}");
    }
}

#[test]
fn masks_aliases_and_missing_units_are_told_apart() {
    let store = MemoryStore::new()
        .link("/etc/systemd/system/gone.service", "/dev/null")
        .file(
            "/usr/lib/orlop/units/gone.service",
            "[Service]\nExecStart=/bin/x\n",
        )
        .file("/etc/systemd/system/empty.service", "")
        .file(
            "/usr/lib/orlop/units/real.service",
            "[Service]\nExecStart=/bin/x\n",
        )
        .link(
            "/etc/systemd/system/other.service",
            "/usr/lib/orlop/units/real.service",
        )
        .file(
            "/etc/systemd/system/other.service.d/a.conf",
            "[Service]\nEnvironment=VIA=alias\n",
        )
        .file(
            "/usr/lib/orlop/units/t@.service",
            "[Service]\nExecStart=/bin/t %i\n",
        )
        .link("/etc/systemd/system/tt.service", "t@7.service")
        .link("/etc/systemd/system/loop1.service", "loop2.service")
        .link("/etc/systemd/system/loop2.service", "loop1.service")
        .file("/opt/out.service", "[Service]\nExecStart=/bin/out\n")
        .link("/etc/systemd/system/linked.service", "/opt/out.service");
    assert!(load(&store, "gone.service").masked && load(&store, "empty.service").masked);
    let real = good(load(&store, "other.service"));
    assert_eq!(
        (real.name.as_str(), real.aliases[0].as_str()),
        ("real.service", "other.service")
    );
    assert_eq!(good(load(&store, "real.service")), real);
    assert_eq!(real.service().unwrap().environment[0].1, "alias");
    assert_eq!(
        service(load(&store, "tt.service")).exec_start[0].words,
        ["7"]
    );
    assert!(messages(&load(&store, "loop1.service"))[0].contains("circle"));
    assert_eq!(
        good(load(&store, "linked.service")).name.as_str(),
        "out.service"
    );
    assert_eq!(load(&store, "none.service"), Loaded::default());
}

#[test]
fn links_in_wants_directories_add_dependencies() {
    let store = MemoryStore::new()
        .link(
            "/etc/systemd/system/multi-user.target.wants/a.service",
            "/nowhere",
        )
        .link(
            "/usr/lib/orlop/units/multi-user.target.wants/b@1.service",
            "../b@.service",
        )
        .link(
            "/usr/lib/orlop/units/multi-user.target.wants/off.service",
            "../off.service",
        )
        .link(
            "/etc/systemd/system/multi-user.target.wants/off.service",
            "/dev/null",
        )
        .link(
            "/etc/systemd/system/multi-user.target.requires/c.service",
            "/nowhere",
        );
    let unit = good(load(&store, "multi-user.target"));
    assert!(has(&unit, Relation::Wants, "a.service") && has(&unit, Relation::Wants, "b@1.service"));
    assert!(
        has(&unit, Relation::Requires, "c.service") && !has(&unit, Relation::Wants, "off.service")
    );
    assert!(has(
        &good(load(&store, "default.target")),
        Relation::Wants,
        "a.service"
    ));
}

#[test]
fn every_problem_has_its_place_and_one_message() {
    assert_eq!(
        warnings(
            "[Unit]\nFoo=1\nX-Bar=1\nAfter=a.service b c@.service\n[Service]\nExecStart=/bin/true\nType=weird\nTimeoutStartSec=soon\nRestart=sometimes\n\n[Socket]\nListen=1\nAccept=no\n"
        ),
        [
            "/etc/systemd/system/a.service:2:1: warning: unknown key Foo in section [Unit], ignored",
            "/etc/systemd/system/a.service:4:17: warning: After=: \"b\" does not end in a unit type such as .service; ignored",
            "/etc/systemd/system/a.service:4:19: warning: After=: c@.service is a template, an instance is needed; ignored",
            "/etc/systemd/system/a.service:7:6: warning: Type=: \"weird\" is not one of simple exec forking oneshot notify notify-reload idle; ignored",
            "/etc/systemd/system/a.service:8:17: warning: TimeoutStartSec=: \"soon\" is not a time span; ignored",
            "/etc/systemd/system/a.service:9:9: warning: Restart=: \"sometimes\" is not one of no always on-success on-failure on-abnormal on-abort on-watchdog; ignored",
            "/etc/systemd/system/a.service:12:1: warning: section [Socket] does not belong in a service unit, ignored",
        ]
    );
}

#[test]
fn what_cannot_be_run_as_written_does_not_load() {
    for (text, message) in [
        (
            "[Service]\n",
            ": error: no ExecStart=; that is only possible with RemainAfterExit=yes and ExecStop=",
        ),
        (
            "[Service]\nExecStart=./x\n",
            ":2:11: error: ExecStart=: \"./x\" is neither an absolute path nor a bare name",
        ),
        (
            "[Service]\nExecStart=+!/bin/true\n",
            ":2:11: error: ExecStart=: only one of the prefixes + ! !! can be used",
        ),
        (
            "[Service]\nExecStart=/bin/echo \\\n  a %z\n",
            ":3:5: error: ExecStart=: unknown specifier %z",
        ),
        (
            "[Service]\nExecStart=/bin/echo 'a\n",
            ":2:21: error: ExecStart=: quote is not closed",
        ),
        (
            "[Service]\nExecStart=/bin/true\nUser=no:such\n",
            ":3:6: error: User=: \"no:such\" is neither a name nor a number of a user or group",
        ),
        (
            "[Service]\nType=oneshot\nRestart=always\nExecStart=/bin/true\n",
            ": error: Restart=always and on-success are not possible with Type=oneshot",
        ),
        (
            "[Service]\nExecStart=/bin/true\nExecStart=/bin/true\n",
            ": error: more than one ExecStart=; that is only possible with Type=oneshot",
        ),
        (
            "[Service]\nExecStop=/bin/true\n",
            ": error: no ExecStart=; that is only possible with RemainAfterExit=yes and ExecStop=",
        ),
        (
            "[Service]\nType=dbus\nExecStart=/bin/true\n",
            ":2:6: error: Type=: dbus is not supported: there is no message bus",
        ),
        (
            "[Service]\nExecStart=/bin/true\nRootImage=/srv/image\n",
            ":3:1: error: RootImage= is not supported (it confines the processes), so the unit is not loaded",
        ),
        (
            "[Service]\nExecStart=@/bin/true\n",
            ":2:11: error: ExecStart=: the prefix @ asks for a second word, the program's own name",
        ),
        (
            "[Service]\nExecStart=$PROGRAM x\n",
            ":2:11: error: ExecStart=: \"$PROGRAM\" cannot be a variable: the program is looked up before variables are known",
        ),
        (
            "[Service\nExecStart=/bin/true\n[Service]\nExecStart=/bin/true\n",
            ":1:1: error: section header is not closed by ]",
        ),
    ] {
        assert_eq!(
            refusal(text),
            format!("/etc/systemd/system/a.service{message}"),
            "{text}"
        );
    }
}

#[test]
fn what_systemd_accepts_loads() {
    for text in [
        "[Service]\nExecStop=/bin/true\nRemainAfterExit=yes\n",
        "[Service]\nType=oneshot\nExecStart=/bin/true\nExecStart=/bin/false\n",
        "[Service]\nExecStart=/bin/true\nPrivateTmp=no\nProtectSystem=false\nSystemCallFilter=\nCPUAccounting=yes\n",
        "[Unit]\nSuccessAction=reboot-force\n[Service]\nType=oneshot\n",
        "[Service]\nExecStart=sh -c true\n",
        "[Unit]\nAfter=a.service\n[Service]\nExecStart=/bin/true\n",
    ] {
        good(read(text));
    }
    assert!(!has(
        &good(read(
            "[Unit]\nAfter=a.service\n[Service]\nExecStart=/bin/true\n"
        )),
        Relation::After,
        "a.service"
    ));
}

#[test]
fn commands_are_split_at_semicolons_and_take_prefixes() {
    let service = service(read(
        "[Service]\nType=oneshot\nExecStart=-@:/bin/sh shell -c ${A} ; /bin/echo a \\; b ';' c ;\n",
    ));
    assert_eq!(service.exec_start.len(), 2);
    let first = &service.exec_start[0];
    assert!(first.flags.ignore_failure && first.flags.no_expansion);
    assert_eq!(
        first.expand(&[("A".to_owned(), "x".to_owned())][..]),
        ["shell", "-c", "${A}"]
    );
    assert_eq!(service.exec_start[1].words, ["a", ";", "b", ";", "c"]);
}

#[test]
fn types_decide_defaults() {
    let oneshot = service(read("[Service]\nType=oneshot\nExecStart=/bin/true\n"));
    assert_eq!(
        (oneshot.timeout_start, oneshot.timeout_stop),
        (None, Some(Duration::from_secs(90)))
    );
    let notify = service(read(
        "[Service]\nType=notify\nExecStart=/bin/true\nKillSignal=SIGINT\nTimeoutSec=5\n",
    ));
    assert_eq!(notify.notify_access, orlop_unit::NotifyAccess::Main);
    assert_eq!(
        (notify.kill_signal, notify.restart_kill_signal),
        (Signal::INT, Signal::INT)
    );
    assert_eq!(
        (notify.timeout_start, notify.timeout_stop),
        (Some(Duration::from_secs(5)), Some(Duration::from_secs(5)))
    );
}

#[test]
fn resources_and_legacy_names() {
    let service = service(read(
        "[Service]\nExecStart=/bin/true\nMemoryLimit=512M\nCPUShares=512\nCPUQuota=150%\nTasksMax=10%\nBlockIOWeight=500\n\
         LimitNOFILE=1024:4096\nLimitCORE=infinity\nLimitNICE=-5\nLimitNOFILE=2048\nStateDirectory=a b/c\nUMask=0077\nDelegate=cpu memory\n",
    ));
    let resources = service.resources;
    assert_eq!(resources.memory_max, Some(Limit::Value(512 << 20)));
    assert_eq!(
        resources.cpu_weight,
        Some(orlop_unit::CpuWeight::Weight(50))
    );
    assert_eq!(
        (resources.cpu_quota_permyriad, resources.io_weight),
        (Some(15_000), Some(100))
    );
    assert_eq!(resources.tasks_max, Some(Limit::Share { permyriad: 1000 }));
    let limits: Vec<_> = service
        .limits
        .iter()
        .map(|l| (l.resource.name, l.soft, l.hard))
        .collect();
    assert_eq!(
        limits,
        [
            ("CORE", None, None),
            ("NICE", Some(25), Some(25)),
            ("NOFILE", Some(2048), Some(2048))
        ]
    );
    assert_eq!(service.state_directory.paths, ["a", "b/c"]);
    assert_eq!((service.umask, service.delegate), (0o77, true));
}

#[test]
fn directories_cannot_leave_their_root() {
    let found = warnings("[Service]\nExecStart=/bin/true\nStateDirectory=../etc /abs ok a/../b\n");
    assert_eq!(found.len(), 3);
}

#[test]
fn conditions_keep_their_marks_and_reset() {
    let unit = good(read(
        "[Unit]\nConditionPathExists=/gone\nConditionHost=\nConditionPathExists=|!/run/%p\nAssertMemory=>=1M\n[Service]\nExecStart=/bin/true\n",
    ));
    let condition = &unit.conditions.0[0];
    assert_eq!(unit.conditions.0.len(), 1);
    assert_eq!(
        (
            condition.parameter.as_str(),
            condition.negate,
            condition.trigger
        ),
        ("/run/a", true, true)
    );
    assert_eq!(unit.asserts.0[0].parameter, ">=1M");
}

#[test]
fn what_is_not_supported_is_named_with_its_place() {
    let store = MemoryStore::new()
        .file(
            "/etc/systemd/system/a.socket",
            "[Socket]\nListenStream=80\nExecStartPre=/bin/true\n",
        )
        .file("/etc/systemd/system/a.swap", "[Swap]\nWhat=/dev/vdb\n");
    assert_eq!(
        messages(&load(&store, "a.swap")),
        ["/etc/systemd/system/a.swap: error: swap units are not supported"]
    );
    assert_eq!(
        messages(&load(&store, "a.socket")),
        [
            "/etc/systemd/system/a.socket:3:1: error: ExecStartPre= is not supported (sockets run no commands; let the service do it), so the unit is not loaded"
        ]
    );
}

proptest::proptest! {
    #[test]
    fn no_file_panics(
        text in "(\\[(Unit|Service|Container|Install)\\]\n|(ExecStart|After|Environment|Type|MemoryMax|LimitCPU|Volume|Image|Exec|User|ConditionHost|StateDirectory)=|[-@:+!|%$\\\\\"';=\n a-c/0-9.{}])*"
    ) {
        for path in ["/etc/systemd/system/a.service", "/etc/systemd/system/a@.service", "/etc/systemd/system/a.target", "/etc/containers/systemd/a.container"] {
            let store = MemoryStore::new().file(path, &text);
            for name in ["a.service", "a@b.service", "a.target"] {
                for problem in load(&store, name).problems {
                    let lines = u32::try_from(text.split('\n').count()).unwrap();
                    proptest::prop_assert!(problem.line <= lines && !problem.message.contains('\n'), "{problem}");
                }
            }
        }
    }
}
