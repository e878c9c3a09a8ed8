//! What a hostile image cannot do.

use std::fs;
use std::os::unix::fs::symlink;

use orlop_container::{MountRequest, MountSource};

use crate::Test;
use crate::world::World;

/// All of them.
pub(crate) const TESTS: &[Test] = &[
    (
        "a_linked_proc_sys_or_dev_is_refused",
        a_linked_proc_sys_or_dev_is_refused,
    ),
    (
        "a_linked_etc_stays_in_the_root",
        a_linked_etc_stays_in_the_root,
    ),
    (
        "a_volume_behind_a_link_lands_in_the_root",
        a_volume_behind_a_link_lands_in_the_root,
    ),
    (
        "a_working_directory_cannot_lead_out",
        a_working_directory_cannot_lead_out,
    ),
    (
        "an_account_file_that_blocks_does_not_hold_the_start",
        an_account_file_that_blocks_does_not_hold_the_start,
    ),
    (
        "nodes_of_the_image_in_dev_are_covered",
        nodes_of_the_image_in_dev_are_covered,
    ),
];

fn a_linked_proc_sys_or_dev_is_refused() {
    for (name, outside) in [
        ("proc", "/etc"),
        ("sys", "/tmp"),
        ("dev", "/tmp"),
        ("proc", "../../.."),
    ] {
        let mut world = World::new();
        symlink(outside, world.image(name)).unwrap();
        let outcome = world.run(&["true"]);
        assert_eq!(outcome.code, 125, "{name}: {outcome:?}");
        assert!(
            outcome.errors.contains(&format!("on /{name}")),
            "{outcome:?}"
        );
        assert!(outcome.errors.contains("Not a directory"), "{outcome:?}");
    }
    let mut world = World::new();
    nix::unistd::mkfifo(&world.image("dev"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(world.run(&["true"]).code, 125);
}

fn a_linked_etc_stays_in_the_root() {
    let mut world = World::new();
    let outside = world.place("outside");
    fs::remove_dir_all(world.image("etc")).unwrap();
    symlink(&outside, world.image("etc")).unwrap();
    let hosts = world.place("files").join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    world.request.mounts = vec![MountRequest {
        source: MountSource::Bind(hosts),
        destination: "/etc/hosts".into(),
        read_only: false,
        options: Vec::new(),
    }];
    assert_eq!(world.script("cat /etc/hosts"), "127.0.0.1 localhost\n");
    assert_eq!(
        fs::read_dir(&outside).unwrap().count(),
        0,
        "something was made outside the root"
    );
}

fn a_volume_behind_a_link_lands_in_the_root() {
    let mut world = World::new();
    let (outside, data) = (world.place("outside"), world.place("data"));
    fs::write(data.join("file"), "data").unwrap();
    symlink(&outside, world.image("mnt")).unwrap();
    symlink("loop", world.image("loop")).unwrap();
    let bind = |destination: &str| MountRequest {
        source: MountSource::Bind(data.clone()),
        destination: destination.into(),
        read_only: false,
        options: Vec::new(),
    };
    world.request.mounts = vec![bind("/mnt/volume")];
    assert_eq!(world.script("cat /mnt/volume/file"), "data");
    assert_eq!(
        fs::read_dir(&outside).unwrap().count(),
        0,
        "something was made outside the root"
    );
    world.request.mounts = vec![bind("/loop/volume")];
    assert_eq!(world.run(&["true"]).code, 125);
    world.request.mounts = vec![bind("/proc/self/fd")];
    assert_eq!(world.run(&["true"]).code, 125);
}

fn a_working_directory_cannot_lead_out() {
    for target in ["/proc/self/fd/3", "/proc/1/cwd", "/proc/self/root/../.."] {
        let mut world = World::new();
        symlink(target, world.image("home")).unwrap();
        world.request.working_directory = Some("/home".into());
        let outcome = world.run(&["sh", "-c", "ls ../../../..; pwd"]);
        // Either it is refused, or it is a directory of the container.
        assert!(
            outcome.code != 0 || outcome.output.contains("bin"),
            "{target}: {outcome:?}"
        );
        assert!(!outcome.output.contains("boot"), "{target}: {outcome:?}");
    }
    for directory in ["/proc/self/fd/3", "/proc/self/fd/8"] {
        let mut world = World::new();
        world.request.working_directory = Some(directory.into());
        let outcome = world.run(&["sh", "-c", "pwd"]);
        assert_eq!(outcome.code, 125, "{directory}: {outcome:?}");
    }
}

fn an_account_file_that_blocks_does_not_hold_the_start() {
    let mut world = World::new();
    fs::remove_file(world.image("etc/passwd")).unwrap();
    nix::unistd::mkfifo(&world.image("etc/passwd"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    world.user = Some("web".into());
    let outcome = world.run(&["true"]);
    assert_eq!(
        (outcome.code, outcome.errors.trim()),
        (125, "the image's /etc/passwd is no regular file")
    );

    fs::remove_file(world.image("etc/passwd")).unwrap();
    symlink("/proc/self/fd/0", world.image("etc/passwd")).unwrap();
    assert_eq!(world.run(&["true"]).code, 125);
}

fn nodes_of_the_image_in_dev_are_covered() {
    let mut world = World::new();
    fs::create_dir(world.image("dev")).unwrap();
    symlink("/etc/passwd", world.image("dev/null")).unwrap();
    symlink("/", world.image("dev/pts")).unwrap();
    assert_eq!(
        world.script("echo overwritten > /dev/null; cat /etc/passwd | wc -l; readlink /dev/ptmx"),
        "2\npts/ptmx\n"
    );
}
