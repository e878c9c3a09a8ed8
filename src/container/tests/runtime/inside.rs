//! What a program in a container sees.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use oci_spec::runtime::{PosixRlimitBuilder, PosixRlimitType};
use orlop_container::{MountRequest, MountSource};

use crate::Test;
use crate::world::World;

/// All of them.
pub(crate) const TESTS: &[Test] = &[
    (
        "the_payload_is_pid_1_in_namespaces_of_its_own",
        the_payload_is_pid_1_in_namespaces_of_its_own,
    ),
    (
        "privileges_are_dockers_defaults",
        privileges_are_dockers_defaults,
    ),
    (
        "the_filter_refuses_what_it_should",
        the_filter_refuses_what_it_should,
    ),
    (
        "no_descriptor_of_the_runtime_or_its_caller_gets_in",
        no_descriptor_of_the_runtime_or_its_caller_gets_in,
    ),
    (
        "the_machines_own_values_are_masked_or_read_only",
        the_machines_own_values_are_masked_or_read_only,
    ),
    (
        "the_machines_mounts_stay_as_they_are",
        the_machines_mounts_stay_as_they_are,
    ),
    (
        "a_read_only_root_has_writable_volumes",
        a_read_only_root_has_writable_volumes,
    ),
    (
        "a_read_only_volume_is_read_only_all_the_way_down",
        a_read_only_volume_is_read_only_all_the_way_down,
    ),
    (
        "a_volume_begins_with_the_images_files",
        a_volume_begins_with_the_images_files,
    ),
    (
        "layers_stack_and_writes_last_one_start",
        layers_stack_and_writes_last_one_start,
    ),
    ("users_come_from_the_image", users_come_from_the_image),
    (
        "environment_and_directory_are_set",
        environment_and_directory_are_set,
    ),
    ("exit_codes_are_dockers", exit_codes_are_dockers),
    (
        "sysctls_and_limits_apply_inside_only",
        sysctls_and_limits_apply_inside_only,
    ),
    (
        "a_device_of_the_machine_cannot_be_opened",
        a_device_of_the_machine_cannot_be_opened,
    ),
    (
        "a_container_that_is_not_started_leaves_no_process",
        a_container_that_is_not_started_leaves_no_process,
    ),
    (
        "a_further_process_gets_no_more_than_the_first",
        a_further_process_gets_no_more_than_the_first,
    ),
    (
        "the_machines_null_device_keeps_its_owner",
        the_machines_null_device_keeps_its_owner,
    ),
];

fn a_further_process_gets_no_more_than_the_first() {
    let Some(root) = orlop_sys::cgroup::mount_point() else {
        return;
    };
    let mut world = World::new();
    let cgroup = root.join(format!("orlop-test-exec-{}", std::process::id()));
    world.cgroup = Some(cgroup.clone());
    world.request.environment = vec!["FIRST=1".into()];
    let look = "id -u; echo $FIRST$MORE; readlink /proc/self/ns/mnt; ls /proc/$$/fd; \
                grep -E 'Cap(Inh|Bnd)|Seccomp:' /proc/self/status; cat /proc/1/comm; head -c 1 /proc/1/environ; exit 5";
    world.exec = Some(["sh", "-c", look].map(str::to_owned).into());
    let outcome = world.run(&["sleep", "1000"]);
    orlop_container::remove_cgroup(&cgroup).unwrap();
    assert_eq!(outcome.code, 5, "{outcome:?}");
    let lines: Vec<&str> = outcome.output.lines().collect();
    assert_eq!(lines[..2], ["101", "11"]);
    assert_ne!(
        Some(lines[2]),
        fs::read_link("/proc/self/ns/mnt").unwrap().to_str()
    );
    let rest = [
        "0",
        "1",
        "2",
        "CapInh:\t0000000000000000",
        "CapBnd:\t00000000a80425fb",
        "Seccomp:\t2",
        "sleep",
    ];
    assert_eq!(lines[3..], rest);
    assert!(
        outcome.errors.contains("Permission denied"),
        "it read the first process' secrets: {outcome:?}"
    );

    world.exec = Some(vec!["nope".into()]);
    world.cgroup = Some(cgroup.clone());
    assert_eq!(world.run(&["sleep", "1000"]).code, 127);
    orlop_container::remove_cgroup(&cgroup).unwrap();
}

fn bind(source: PathBuf, destination: &str, read_only: bool) -> MountRequest {
    MountRequest {
        source: MountSource::Bind(source),
        destination: destination.into(),
        read_only,
        options: Vec::new(),
    }
}

fn the_payload_is_pid_1_in_namespaces_of_its_own() {
    let mut world = World::new();
    let text = world.script("echo $$; hostname; for n in mnt pid net ipc uts cgroup; do readlink /proc/self/ns/$n; done");
    let mut lines = text.lines();
    assert_eq!((lines.next(), lines.next()), (Some("1"), Some("inside")));
    for kind in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let ours = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        let theirs = lines.next().unwrap();
        assert!(
            theirs.starts_with(kind) && ours.to_str() != Some(theirs),
            "{kind}: {theirs}"
        );
    }
}

fn privileges_are_dockers_defaults() {
    let mut world = World::new();
    let status = world.run(&["cat", "/proc/self/status"]).output;
    let value = |key: &str| {
        let line = status
            .lines()
            .find(|l| l.starts_with(key))
            .unwrap_or_default();
        line.split_ascii_whitespace()
            .nth(1)
            .unwrap_or_default()
            .to_owned()
    };
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        assert_eq!(value(set), "00000000a80425fb", "{set}");
    }
    assert_eq!(
        (value("CapInh:"), value("CapAmb:")),
        ("0".repeat(16), "0".repeat(16))
    );
    assert_eq!(
        (value("NoNewPrivs:"), value("Seccomp:")),
        ("1".into(), "2".into())
    );
    // Rust ignores SIGPIPE; a payload must not.
    assert_eq!(
        (value("SigIgn:"), value("SigBlk:")),
        ("0".repeat(16), "0".repeat(16))
    );
}

fn the_filter_refuses_what_it_should() {
    let mut world = World::new();
    world.request.capabilities |= 1 << 21; // SYS_ADMIN, to show that the rest is the filter's work
    assert_eq!(world.run(&["unshare", "-m", "true"]).code, 0);
    world.request.capabilities &= !(1 << 21);
    let refused = world.run(&["unshare", "-U", "true"]);
    assert_ne!(refused.code, 0);
    assert!(
        refused.errors.contains("Operation not permitted"),
        "{refused:?}"
    );
    assert_ne!(world.run(&["mount", "-t", "tmpfs", "none", "/tmp"]).code, 0);
}

fn no_descriptor_of_the_runtime_or_its_caller_gets_in() {
    let mut world = World::new();
    world.request.command = ["sh", "-c", "ls /proc/1/fd; true"]
        .map(str::to_owned)
        .into();
    // A descriptor that a careless caller left open over exec.
    let leaked = fs::File::open("/").unwrap();
    nix::fcntl::fcntl(
        &leaked,
        nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()),
    )
    .unwrap();
    let output = world.command().output().unwrap();
    assert!(leaked.as_raw_fd() > 2);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout)
            .split_whitespace()
            .collect::<Vec<_>>(),
        ["0", "1", "2"]
    );
}

fn the_machines_own_values_are_masked_or_read_only() {
    let mut world = World::new();
    assert_eq!(
        world
            .script("cat /proc/keys /proc/timer_list /proc/interrupts | wc -c")
            .trim(),
        "0"
    );
    assert_eq!(world.script("ls /sys/firmware | wc -l").trim(), "0");
    let mounts = world.script("cat /proc/self/mountinfo");
    assert!(
        mounts.lines().any(|l| l.contains(" /proc/irq ro,")),
        "{mounts}"
    );
    for path in [
        "/proc/sys/kernel/core_pattern",
        "/sys/x",
        "/sys/fs/cgroup/x",
    ] {
        let outcome = world.run(&["sh", "-c", &format!("echo x > {path}")]);
        assert!(
            outcome.code != 0 && outcome.errors.contains("Read-only"),
            "{path}: {outcome:?}"
        );
    }
}

fn the_machines_mounts_stay_as_they_are() {
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts();
    let mut world = World::new();
    world.request.mounts = vec![bind(world.place("shared"), "/shared", false)];
    world.script("true");
    world.run(&["/bin/nope"]);
    assert_eq!(mounts(), before);
}

fn a_read_only_root_has_writable_volumes() {
    let mut world = World::new();
    let data = world.place("data");
    world.request.read_only = true;
    world.request.mounts = vec![
        bind(data.clone(), "/data", false),
        MountRequest {
            source: MountSource::Tmpfs(vec!["size=64k".into()]),
            destination: "/tmp".into(),
            read_only: false,
            options: Vec::new(),
        },
    ];
    world.script(
        "! touch /here 2>/dev/null && echo kept > /data/file && touch /tmp/x && echo > /dev/null",
    );
    assert_eq!(fs::read_to_string(data.join("file")).unwrap(), "kept\n");
}

fn a_read_only_volume_is_read_only_all_the_way_down() {
    let mut world = World::new();
    let data = world.place("data");
    fs::write(data.join("file"), "machine's").unwrap();
    world.request.mounts = vec![
        bind(data.clone(), "/data", true),
        bind(data.join("file"), "/etc/one", true),
    ];
    let text = world.script(
        "cat /data/file /etc/one; ! touch /data/x && ! touch /etc/one && rm -f /data/file || true",
    );
    assert_eq!(text, "machine'smachine's");
    assert!(data.join("file").exists());
}

fn a_volume_begins_with_the_images_files() {
    let mut world = World::new();
    let volume = world.place("volume");
    fs::create_dir(world.image("srv")).unwrap();
    fs::write(world.image("srv/index"), "from the image").unwrap();
    world.request.mounts = vec![bind(volume.clone(), "/srv", false)];
    world.volumes = vec![(volume.clone(), "/srv".into())];
    assert_eq!(
        world.script("cat /srv/index; echo mine > /srv/index"),
        "from the image"
    );
    assert_eq!(world.script("cat /srv/index"), "mine\n");
}

fn layers_stack_and_writes_last_one_start() {
    let mut world = World::new();
    let upper = world.place("layer2");
    fs::create_dir(upper.join("etc")).unwrap();
    fs::write(upper.join("etc/which"), "upper").unwrap();
    fs::write(world.image("etc/which"), "lower").unwrap();
    world.layers.push(upper);
    assert_eq!(
        world.script("cat /etc/which; echo new > /etc/which; touch /left"),
        "upper"
    );
    assert_eq!(
        world.script("cat /etc/which; ! ls /left 2>/dev/null"),
        "upper"
    );
}

fn users_come_from_the_image() {
    let mut world = World::new();
    world.user = Some("web".into());
    let text = world.script("id -u; id -g; id -G; echo $HOME; grep CapEff /proc/self/status");
    assert_eq!(
        text,
        "101\n102\n102 200\n/srv/web\nCapEff:\t0000000000000000\n"
    );
    world.user = Some("4711:logs".into());
    assert_eq!(world.script("id -u; id -G"), "4711\n200\n");
    world.user = Some("nobody".into());
    let outcome = world.run(&["true"]);
    assert_eq!(
        (outcome.code, outcome.errors.trim()),
        (125, "no user \"nobody\" in the image's /etc/passwd")
    );
}

fn environment_and_directory_are_set() {
    let mut world = World::new();
    world.request.environment = vec!["A=b c".into()];
    world.request.working_directory = Some("/new/place".into());
    assert_eq!(
        world.script("echo $A $HOSTNAME; pwd"),
        "b c inside\n/new/place\n"
    );
}

fn exit_codes_are_dockers() {
    let mut world = World::new();
    fs::write(world.image("etc/text"), "no program").unwrap();
    assert_eq!(world.run(&["sh", "-c", "exit 42"]).code, 42);
    let missing = world.run(&["/bin/nope"]);
    assert_eq!(
        (missing.code, missing.errors.trim()),
        (127, "exec /bin/nope: No such file or directory")
    );
    assert_eq!(world.run(&["nope"]).code, 127);
    let unfit = world.run(&["/etc/text"]);
    assert_eq!(
        (unfit.code, unfit.errors.trim()),
        (126, "exec /etc/text: Permission denied")
    );
    world
        .request
        .sysctls
        .insert("kernel.core_pattern".into(), "x".into());
    assert_eq!(world.run(&["true"]).code, 125);
}

fn sysctls_and_limits_apply_inside_only() {
    let mut world = World::new();
    let forwarding = || fs::read_to_string("/proc/sys/net/ipv4/ip_default_ttl").unwrap();
    let before = forwarding();
    world
        .request
        .sysctls
        .insert("net.ipv4.ip_default_ttl".into(), "77".into());
    world.request.oom_score_adjust = Some(500);
    let limit = PosixRlimitBuilder::default()
        .typ(PosixRlimitType::RlimitNofile)
        .soft(64_u64)
        .hard(128_u64);
    world.request.limits = vec![limit.build().unwrap()];
    let text = world.script(
        "cat /proc/sys/net/ipv4/ip_default_ttl /proc/self/oom_score_adj; ulimit -Sn; ulimit -Hn",
    );
    assert_eq!(text, "77\n500\n64\n128\n");
    assert_eq!(forwarding(), before);
}

fn a_device_of_the_machine_cannot_be_opened() {
    let Some(root) = orlop_sys::cgroup::mount_point() else {
        return;
    };
    let mut world = World::new();
    let cgroup = root.join(format!("orlop-test-{}", std::process::id()));
    world.cgroup = Some(cgroup.clone());
    // /dev/mem is character device 1:1, /dev/null 1:3.
    let outcome = world.run(&["sh", "-c", "mknod /dev/mem2 c 1 1 && mknod /dev/null2 c 1 3 && echo > /dev/null2 && head -c 1 /dev/mem2"]);
    fs::remove_dir(cgroup).unwrap();
    assert!(
        outcome.code != 0 && outcome.errors.contains("Operation not permitted"),
        "{outcome:?}"
    );
}

fn a_container_that_is_not_started_leaves_no_process() {
    let Some(root) = orlop_sys::cgroup::mount_point() else {
        return;
    };
    let mut world = World::new();
    let cgroup = root.join(format!("orlop-test-unstarted-{}", std::process::id()));
    world.cgroup = Some(cgroup.clone());
    world.start = false;
    // The runtime is gone before its container ever heard from it.
    assert_eq!(world.run(&["sleep", "1000"]).code, 0);
    let empty = || {
        fs::read_to_string(cgroup.join("cgroup.events"))
            .unwrap()
            .contains("populated 0")
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !empty() && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert!(empty());
    fs::remove_dir(cgroup).unwrap();
}

fn the_machines_null_device_keeps_its_owner() {
    let mut world = World::new();
    world.user = Some("web".into());
    world.script("true");
    let status = fs::metadata("/dev/null").unwrap();
    assert_eq!(
        (status.uid(), status.gid(), status.mode() & 0o777),
        (0, 0, 0o666)
    );
}
