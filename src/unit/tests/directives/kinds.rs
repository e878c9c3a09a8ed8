//! `.timer`, `.socket`, `.mount`, `.path`, `.slice`.

use std::time::Duration;

use orlop_unit::socket::{Address, BindIpv6Only, Listen};
use orlop_unit::timer::{Since, Trigger};
use orlop_unit::unit::Kind;
use orlop_unit::{
    Graph, LoadState, Loader, MemoryStore, Mount, PathUnit, Relation, Socket, SpecifierContext,
    Timer, Unit, UnitName, Watch,
};

use super::{good, has, message, read};

fn timer(lines: &str) -> (Unit, Timer) {
    let unit = good("a.timer", &format!("[Timer]\n{lines}\n"));
    let Kind::Timer(timer) = unit.kind.clone() else {
        panic!("a timer")
    };
    (unit, *timer)
}

fn socket(lines: &str) -> (Unit, Socket) {
    let unit = good("a.socket", &format!("[Socket]\n{lines}\n"));
    let Kind::Socket(socket) = unit.kind.clone() else {
        panic!("a socket")
    };
    (unit, *socket)
}

fn mount(name: &str, lines: &str) -> (Unit, Mount) {
    let unit = good(name, &format!("[Mount]\n{lines}\n"));
    let Kind::Mount(mount) = unit.kind.clone() else {
        panic!("a mount")
    };
    (unit, *mount)
}

fn path(lines: &str) -> (Unit, PathUnit) {
    let unit = good("a.path", &format!("[Path]\n{lines}\n"));
    let Kind::Path(path) = unit.kind.clone() else {
        panic!("a path")
    };
    (unit, *path)
}

#[test]
fn a_timer_starts_its_namesake_at_all_its_times() {
    let (unit, timer) = timer(
        "OnCalendar=daily\nOnCalendar=Mon 09:00\nOnBootSec=5min\nOnUnitActiveSec=1h\nAccuracySec=1us\n\
         RandomizedDelaySec=30\nFixedRandomDelay=yes\nPersistent=yes\nWakeSystem=no\nRemainAfterElapse=no",
    );
    assert_eq!(timer.triggers.len(), 4);
    assert_eq!(
        timer.triggers[2],
        Trigger::After(Since::Boot, Duration::from_secs(300))
    );
    assert_eq!(
        (timer.accuracy, timer.randomized_delay),
        (Duration::from_micros(1), Duration::from_secs(30))
    );
    assert!(timer.persistent && timer.fixed_random_delay && !timer.remain_after_elapse);
    assert_eq!(timer.unit.as_str(), "a.service");
    // 2026-01-05 is a Monday; midnight comes first.
    assert_eq!(
        timer.next_calendar(1_767_571_199_000_000),
        Some(1_767_571_200_000_000)
    );
    for (relation, on) in [
        (Relation::Triggers, "a.service"),
        (Relation::Before, "a.service"),
        (Relation::Before, "timers.target"),
        (Relation::Requires, "sysinit.target"),
        (Relation::After, "time-sync.target"),
        (Relation::Conflicts, "shutdown.target"),
    ] {
        assert!(has(&unit, relation, on), "{relation:?} {on}");
    }
    assert_eq!(unit.requires_mounts_for, ["/var/lib/orlop/timers"]);
}

#[test]
fn an_empty_line_takes_all_triggers_of_a_timer_away() {
    let (unit, timer) = timer("OnBootSec=1\nOnCalendar=\nOnActiveSec=2\nUnit=b.target");
    assert_eq!(
        timer.triggers,
        [Trigger::After(Since::TimerStarted, Duration::from_secs(2))]
    );
    assert!(
        has(&unit, Relation::Triggers, "b.target")
            && !has(&unit, Relation::After, "time-sync.target")
    );
}

#[test]
fn a_socket_listens_and_passes_to_its_service() {
    let (unit, socket) = socket(
        "ListenStream=80\nListenStream=[::1]:81\nListenStream=/run/a.sock\nListenDatagram=@a\nListenSequentialPacket=/run/b\n\
         ListenFIFO=/run/f\nListenNetlink=kobject-uevent 1\nSocketMode=0600\nSocketUser=root\nDirectoryMode=0700\n\
         BindIPv6Only=both\nBacklog=10\nFreeBind=yes\nReusePort=yes\nNoDelay=yes\nKeepAlive=yes\nKeepAliveTimeSec=5\n\
         FileDescriptorName=web\nRemoveOnStop=yes\nPassCredentials=yes\nReceiveBuffer=64K\nTriggerLimitBurst=7\n\
         TimeoutSec=3\nExecStartPre=/bin/mkdir -p /run/x\nExecStopPre=/bin/true\nSlice=x.slice\nNice=3",
    );
    assert_eq!(socket.listen.len(), 7);
    assert_eq!(socket.listen[0], Listen::Stream(Address::Port(80)));
    assert_eq!(
        socket.listen[3],
        Listen::Datagram(Address::Abstract("a".into()))
    );
    assert_eq!(
        (socket.mode, socket.backlog, socket.bind_ipv6_only),
        (0o600, 10, BindIpv6Only::Both)
    );
    assert_eq!(
        (socket.descriptor_name.as_str(), socket.service.as_str()),
        ("web", "a.service")
    );
    assert_eq!(
        (socket.timeout, socket.trigger_limit_burst),
        (Some(Duration::from_secs(3)), 7)
    );
    assert_eq!(
        (socket.receive_buffer, socket.execution.nice),
        (Some(65_536), Some(3))
    );
    assert_eq!(
        (
            socket.execution.exec_start_pre.len(),
            socket.exec_stop_pre.len()
        ),
        (1, 1)
    );
    assert!(
        has(&unit, Relation::Triggers, "a.service")
            && has(&unit, Relation::Before, "sockets.target")
    );
    assert_eq!(
        unit.requires_mounts_for,
        ["/run/a.sock", "/run/b", "/run/f"]
    );
}

#[test]
fn an_accepting_socket_has_a_template() {
    let (unit, socket) = socket("ListenStream=80\nAccept=yes\nMaxConnections=5");
    assert_eq!(
        (socket.service.as_str(), socket.trigger_limit_burst),
        ("a@.service", 200)
    );
    assert_eq!(unit.related(Relation::Triggers).count(), 0);
}

#[test]
fn a_mount_is_named_by_its_place() {
    let (unit, m) = mount(
        "srv-my\\x20data.mount",
        "What=/dev/vdb1\nWhere=/srv/my data/\nType=ext4\nOptions=noatime\nOptions=ro\nTimeoutSec=0\nDirectoryMode=0700",
    );
    assert_eq!(
        (m.place.as_str(), m.options.as_str(), m.timeout),
        ("/srv/my data", "noatime,ro", None)
    );
    for (relation, on) in [
        (Relation::Before, "local-fs.target"),
        (Relation::After, "local-fs-pre.target"),
        (Relation::Conflicts, "umount.target"),
        (Relation::Before, "umount.target"),
    ] {
        assert!(has(&unit, relation, on), "{relation:?} {on}");
    }
    assert_eq!(unit.requires_mounts_for, ["/srv"]);
    let (_, m) = mount("tmp.mount", "What=tmpfs\nType=tmpfs");
    assert_eq!(m.place, "/tmp");
    let (unit, m) = mount("mnt.mount", "What=server:/x\nType=nfs4\nOptions=nofail");
    assert!(m.is_remote() && has(&unit, Relation::After, "network-online.target"));
    assert!(!has(&unit, Relation::Before, "remote-fs.target"));
    let (unit, _) = mount("usr.mount", "What=/dev/vdb1");
    assert!(!has(&unit, Relation::Before, "local-fs.target"));
}

#[test]
fn a_path_watches() {
    let (unit, path) = path(
        "PathExists=/a\nPathExistsGlob=/b/*\nPathChanged=/c\nPathModified=/d\nDirectoryNotEmpty=/e\nMakeDirectory=yes\nDirectoryMode=0700\nUnit=b.service\nTriggerLimitBurst=3",
    );
    let kinds: Vec<Watch> = path.watches.iter().map(|(watch, _)| *watch).collect();
    assert_eq!(
        kinds,
        [
            Watch::Exists,
            Watch::ExistsGlob,
            Watch::Changed,
            Watch::Modified,
            Watch::DirectoryNotEmpty
        ]
    );
    assert_eq!(
        (
            path.unit.as_str(),
            path.directory_mode,
            path.trigger_limit_burst
        ),
        ("b.service", 0o700, 3)
    );
    assert!(
        has(&unit, Relation::Before, "paths.target") && has(&unit, Relation::Triggers, "b.service")
    );
}

#[test]
fn a_slice_lies_in_its_parent() {
    let unit = good("a-b.slice", "[Slice]\nMemoryMax=1G\nCPUWeight=50\n");
    let Kind::Slice(resources) = &unit.kind else {
        panic!("a slice")
    };
    assert!(resources.memory_max.is_some());
    assert!(has(&unit, Relation::Requires, "a.slice") && has(&unit, Relation::After, "a.slice"));
    assert!(has(
        &good("a.slice", "[Slice]\n"),
        Relation::Requires,
        "-.slice"
    ));
    // Without a file it is there all the same.
    assert!(read("b.slice", "").masked);
    let context = SpecifierContext::default();
    let store = MemoryStore::new();
    let loader = Loader::new(&["/u"], &store, &context).reading_all();
    assert!(
        loader
            .load(&UnitName::parse("x-y.slice").unwrap())
            .unit
            .is_some()
    );
}

#[test]
fn units_that_could_do_nothing_are_refused() {
    for (name, text, expected) in [
        ("a.timer", "[Timer]\nOnCalendar=25:00\n", None),
        (
            "a.timer",
            "[Timer]\nPersistent=yes\n",
            Some(" error: no On…= line, so it would never elapse"),
        ),
        (
            "a.socket",
            "[Socket]\nAccept=no\n",
            Some(" error: no Listen…= line, so nothing is listened for"),
        ),
        ("a.socket", "[Socket]\nListenStream=99999\n", None),
        (
            "a.socket",
            "[Socket]\nListenDatagram=1\nAccept=yes\n",
            Some(" error: Accept=yes is only possible for sockets that take connections"),
        ),
        (
            "a.socket",
            "[Socket]\nListenStream=1\nAccept=yes\nService=b.service\n",
            Some(" error: Service= is not possible with Accept=yes"),
        ),
        (
            "a.socket",
            "[Socket]\nListenStream=1\nSymlinks=/a\n",
            Some(" error: Symlinks= asks for exactly one socket in the file system"),
        ),
        (
            "a.socket",
            "[Socket]\nListenMessageQueue=/q\nListenFIFO=/f\n",
            Some(
                "2:1: error: ListenMessageQueue= is not supported (POSIX message queues), so the unit is not loaded",
            ),
        ),
        (
            "a.path",
            "[Path]\nMakeDirectory=yes\n",
            Some(" error: no Path…= or DirectoryNotEmpty= line, so nothing is watched"),
        ),
        (
            "a.path",
            "[Path]\nPathExists=/a\nUnit=a.path\n",
            Some(" error: it would start itself"),
        ),
        (
            "a.mount",
            "[Mount]\nWhat=x\nWhere=/b\n",
            Some(" error: Where=/b belongs in a unit of the name b.mount"),
        ),
        (
            "a.mount",
            "[Mount]\nWhere=/a\n",
            Some(" error: no What=, so there is nothing to mount"),
        ),
        (
            "proc.mount",
            "[Mount]\nWhat=proc\n",
            Some(" error: /proc belongs to the machine and is not mounted by units"),
        ),
        (
            "a--b.slice",
            "[Slice]\n",
            Some(
                " error: a--b.slice names no place in the tree of slices, such as a-b.slice in a.slice",
            ),
        ),
        (
            "a.swap",
            "[Swap]\nWhat=/dev/vdb\n",
            Some(" error: swap units are not supported"),
        ),
        (
            "a.automount",
            "[Automount]\nWhere=/a\n",
            Some(" error: automount units are not supported"),
        ),
    ] {
        let loaded = read(name, text);
        assert!(loaded.unit.is_none(), "{text}");
        if let Some(expected) = expected {
            assert_eq!(message(name, text), expected, "{text}");
        } else {
            assert_eq!(loaded.problems.len(), 2, "{text}");
        }
    }
}

#[test]
fn paths_need_the_mounts_that_have_units() {
    let context = SpecifierContext::default();
    let store = MemoryStore::new()
        .file(
            "/u/a.service",
            "[Unit]\nRequiresMountsFor=/srv/data/x\n[Service]\nExecStart=/bin/true\n",
        )
        .file("/u/srv-data.mount", "[Mount]\nWhat=/dev/vdb\n")
        .file("/u/srv.mount", "[Mount]\nWhat=/dev/vdc\n");
    let loader = Loader::new(&["/u"], &store, &context).reading_all();
    let mut graph = Graph::new();
    let id = graph.load(&UnitName::parse("a.service").unwrap(), &mut |n| {
        loader.load(n)
    });
    let needed: Vec<&str> = graph
        .related(id, orlop_unit::Edge::Requires)
        .map(|id| graph.name(id).as_str())
        .collect();
    assert_eq!(needed, ["sysinit.target", "srv-data.mount", "srv.mount"]);
    let outer = graph.find("srv.mount").unwrap();
    assert!(matches!(graph.load_state(outer), LoadState::Loaded(_)));
    let inner = graph.find("srv-data.mount").unwrap();
    assert!(
        graph
            .related(inner, orlop_unit::Edge::After)
            .any(|id| id == outer)
    );
    assert!(graph.find("srv-data-x.mount").is_none());
}
