//! Whole runs on a scratch root. They write files for other owners, so they need root.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown, symlink};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use orlop_config::Machine;

use super::run_on;

/// A root as the boot stage leaves it, with NoCloud's volume mounted.
struct World(tempfile::TempDir);

impl World {
    fn new(user_data: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            return None;
        }
        let world = Self(tempfile::tempdir().unwrap());
        for directory in [
            "etc",
            "proc/sys/net/core",
            "proc/sys/net/netfilter",
            "sys/module/nf_conntrack/parameters",
            "run/orlop/cidata",
            "var",
            "usr/lib/orlop/units",
        ] {
            fs::create_dir_all(world.path(directory)).unwrap();
        }
        world.write(
            "etc/passwd",
            "root:x:0:0::/root:/bin/sh\ncore:x:500:500::/home/core:/bin/sh\n",
        );
        world.write("etc/group", "root:x:0:\ncore:x:500:\n");
        world.write("etc/motd", "welcome\n");
        world.write("proc/cmdline", "console=ttyS0\n");
        world.write("proc/sys/net/core/somaxconn", "128\n");
        world.write("proc/sys/net/netfilter/nf_conntrack_max", "65536\n");
        world.write("sys/module/nf_conntrack/parameters/hashsize", "1024\n");
        symlink("var/home", world.path("home")).unwrap();
        if !user_data.is_empty() {
            world.write("run/orlop/cidata/user-data", user_data);
            world.write("run/orlop/cidata/meta-data", "instance-id: i-1\n");
        }
        Some(world)
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.0.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        fs::write(self.path(path), text).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn run(&self) -> Vec<String> {
        run_on(self.0.path(), false)
    }

    fn mode(&self, path: &str) -> (u32, u32) {
        let metadata = fs::symlink_metadata(self.path(path)).unwrap();
        (metadata.mode() & 0o7777, metadata.uid())
    }

    fn machine(&self) -> Machine {
        serde_json::from_str(&self.read("run/orlop/machine.json")).unwrap()
    }

    /// Everything that can be seen of every file: a run that writes the same again changes inode numbers or times.
    fn snapshot(&self) -> BTreeMap<String, String> {
        let mut seen = BTreeMap::new();
        let mut left = vec![self.0.path().to_owned()];
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let m = fs::symlink_metadata(&path).unwrap();
                if m.is_dir() {
                    left.push(path.clone());
                }
                let what = format!(
                    "{:o} {} {} {} {} {}.{}",
                    m.mode(),
                    m.uid(),
                    m.gid(),
                    m.ino(),
                    m.len(),
                    m.mtime(),
                    m.mtime_nsec()
                );
                seen.insert(path.display().to_string(), what);
            }
        }
        seen
    }
}

const FULL: &str = r#"#cloud-config
hostname: alpha.example.com
sysctl:
  net.core.somaxconn: 4096
conntrack:
  max: 262144
ssh_authorized_keys:
  - ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA me@here
write_files:
  - path: /etc/secret
    permissions: "0600"
    owner: core
    content: hidden
  - path: /etc/motd
    append: true
    content: "and mind the gap\n"
  - path: /opt/deep/down/tool
    permissions: "0755"
    content: "exit 0"
coreos:
  units:
    - name: web.service
      enable: true
      content: |
        [Service]
        ExecStart=/bin/true
        [Install]
        WantedBy=multi-user.target
"#;

#[test]
fn a_configuration_becomes_files_parameters_and_links() {
    let Some(world) = World::new(FULL) else {
        return;
    };
    assert_eq!(world.run(), Vec::<String>::new());
    assert_eq!(world.read("etc/hostname"), "alpha.example.com\n");
    assert_eq!(world.read("proc/sys/net/core/somaxconn"), "4096\n");
    assert_eq!(
        world.read("proc/sys/net/netfilter/nf_conntrack_max"),
        "262144\n"
    );
    assert_eq!(
        world.read("sys/module/nf_conntrack/parameters/hashsize"),
        "65536\n"
    );
    assert_eq!(world.read("etc/secret"), "hidden");
    assert_eq!(world.mode("etc/secret"), (0o600, 500));
    assert_eq!(world.read("etc/motd"), "welcome\nand mind the gap\n");
    assert_eq!(world.mode("opt/deep/down/tool"), (0o755, 0));
    assert_eq!(world.mode("opt/deep"), (0o755, 0));
    assert_eq!(
        world.mode("var/home/core/.ssh/authorized_keys"),
        (0o600, 500)
    );
    assert_eq!(world.mode("var/home/core/.ssh"), (0o700, 500));
    assert_eq!(world.mode("var/tmp"), (0o1777, 0));
    assert_eq!(world.mode("run/orlop/machine.json"), (0o600, 0));
    assert_eq!(
        world.machine().hostname.unwrap().value.as_str(),
        "alpha.example.com"
    );
    assert_eq!(world.read("etc/machine-id").trim().len(), 32);
    assert_eq!(
        world.read("etc/machine-id"),
        world.read("var/lib/orlop/machine-id")
    );
    assert!(
        fs::symlink_metadata(world.path("etc/systemd/system/multi-user.target.wants/web.service"))
            .unwrap()
            .is_symlink()
    );
}

#[test]
fn a_second_run_changes_nothing() {
    let Some(world) = World::new(FULL) else {
        return;
    };
    world.run();
    let first = world.snapshot();
    assert_eq!(world.run(), Vec::<String>::new());
    assert_eq!(world.snapshot(), first);
}

#[test]
fn a_broken_yaml_is_one_line_and_the_machine_is_set_up_all_the_same() {
    let Some(world) = World::new("#cloud-config\nhostname: [alpha\nusers: }\n") else {
        return;
    };
    let failures = world.run();
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert!(failures[0].starts_with("user-data:"), "{failures:?}");
    assert!(world.machine().hostname.is_none());
    let id = world.read("etc/machine-id");
    assert_eq!(world.read("etc/hostname"), format!("orlop-{}\n", &id[..8]));
    assert_eq!(world.mode("var/home/core"), (0o750, 500));
}

#[test]
fn a_parameter_that_the_kernel_lacks_is_a_line_with_key_and_source_and_the_rest_is_set() {
    let text = "#cloud-config\nsysctl:\n  net.core.no_such: 1\n  net.core.somaxconn: 512\n";
    let Some(world) = World::new(text) else {
        return;
    };
    let failures = world.run();
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert!(
        failures[0].contains("net.core.no_such") && failures[0].starts_with("user-data:3:"),
        "{failures:?}"
    );
    assert_eq!(world.read("proc/sys/net/core/somaxconn"), "512\n");
    assert!(!world.path("proc/sys/net/core/no_such").exists());
}

#[test]
fn the_kept_configuration_is_used_when_no_source_answers_and_a_broken_one_does_not_replace_it() {
    let Some(world) = World::new(FULL) else {
        return;
    };
    world.run();
    world.write("run/orlop/cidata/user-data", "#cloud-config\nhostname: [\n");
    assert_eq!(world.run().len(), 1);
    fs::remove_dir_all(world.path("run/orlop/cidata")).unwrap();
    world.write("proc/sys/net/core/somaxconn", "128\n");
    assert_eq!(world.run(), Vec::<String>::new());
    let hostname = world.machine().hostname.unwrap();
    assert_eq!(hostname.value.as_str(), "alpha.example.com");
    assert_eq!(hostname.source.name, "kept user-data");
    assert_eq!(world.read("proc/sys/net/core/somaxconn"), "4096\n");
}

#[test]
fn a_machine_without_any_source_keeps_its_number() {
    let Some(world) = World::new("") else { return };
    assert_eq!(world.run(), Vec::<String>::new());
    let id = world.read("etc/machine-id");
    world.write("etc/machine-id", "uninitialized\n");
    world.run();
    assert_eq!(world.read("etc/machine-id"), id);
    world.write(
        "proc/cmdline",
        "systemd.machine_id=0123456789abcdef0123456789abcdef\n",
    );
    world.run();
    assert_eq!(
        world.read("etc/machine-id"),
        "0123456789abcdef0123456789abcdef\n"
    );
}

#[test]
fn the_number_comes_from_the_hardware_but_not_as_it_is() {
    let ids: Vec<String> = (0..2)
        .filter_map(|_| {
            let world = World::new("")?;
            fs::create_dir_all(world.path("sys/class/dmi/id")).unwrap();
            world.write(
                "sys/class/dmi/id/product_uuid",
                "4C4C4544-0042-3510-8039-5AC04F565331\n",
            );
            world.run();
            Some(world.read("etc/machine-id"))
        })
        .collect();
    assert!(ids.windows(2).all(|pair| pair[0] == pair[1]));
    assert!(ids.iter().all(|id| !id.starts_with("4c4c4544")));
}

#[test]
fn what_lies_behind_a_users_link_is_not_written() {
    let Some(world) = World::new(FULL) else {
        return;
    };
    world.run();
    // core leads its keys elsewhere.
    fs::remove_dir_all(world.path("var/home/core/.ssh")).unwrap();
    symlink("/etc", world.path("var/home/core/.ssh")).unwrap();
    lchown(world.path("var/home/core/.ssh"), Some(500), Some(500)).unwrap();
    let failures = world.run();
    assert!(
        failures.iter().any(|line| line.contains("/home/core/.ssh")),
        "{failures:?}"
    );
    assert!(!world.path("etc/authorized_keys").exists());
    assert_eq!(world.mode("etc").1, 0);
}

#[test]
fn a_directory_in_the_way_of_a_file_is_a_line_and_stays() {
    let Some(world) = World::new(FULL) else {
        return;
    };
    fs::create_dir_all(world.path("etc/secret/kept")).unwrap();
    let failures = world.run();
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert!(failures[0].contains("/etc/secret"), "{failures:?}");
    assert!(world.path("etc/secret/kept").is_dir());
    assert!(world.path("opt/deep/down/tool").exists());
}

/// Runs as on a machine, in namespaces of its own below the scratch root.
#[test]
fn a_machine_without_disks_comes_up_in_memory() {
    let Some(world) = World::new("") else { return };
    fs::create_dir_all(world.path("usr/share/orlop")).unwrap();
    let toml = "hostname = \"beta\"\n[sysctl]\n\"net.ipv4.ip_forward\" = 1\n";
    world.write("usr/share/orlop/10-site.toml", toml);
    let root = world.0.path().to_owned();
    // The namespaces are the thread's alone and end with it.
    let outcome = std::thread::spawn(move || {
        let flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWNET;
        if unshare(flags).is_err() {
            return None;
        }
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(
            Some("/proc"),
            &root.join("proc"),
            none,
            MsFlags::MS_BIND,
            none,
        )
        .unwrap();
        let dev = root.join("dev");
        fs::create_dir(&dev).unwrap();
        mount(Some("/dev"), &dev, none, MsFlags::MS_BIND, none).unwrap();
        nix::unistd::chroot(&root).unwrap();
        nix::unistd::chdir("/").unwrap();
        let first = run_on(Path::new("/"), true);
        let second = run_on(Path::new("/"), true);
        let name = nix::unistd::gethostname().unwrap();
        let var = crate::mountinfo::read()
            .into_iter()
            .filter(|mount| mount.target == "/var")
            .count();
        let mode = fs::metadata("/var").unwrap().permissions().mode() & 0o7777;
        let forward = fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
        Some((first, second, name, var, mode, forward))
    })
    .join()
    .unwrap();
    // A host that gives no namespaces can not test this.
    let Some((first, second, name, var, mode, forward)) = outcome else {
        return;
    };
    assert_eq!(first, Vec::<String>::new());
    assert_eq!(second, Vec::<String>::new());
    assert_eq!(name, "beta");
    assert_eq!((var, mode), (1, 0o755));
    assert_eq!(forward, "1\n");
    // The scratch root's own /var lies below the memory.
    assert!(!world.path("var/lib").exists());
}

#[test]
fn a_reset_that_was_asked_for_is_done_before_var_is_used() {
    let Some(world) = World::new("#cloud-config\nhostname: web1\n") else {
        return;
    };
    world.run();
    let number = world.read("etc/machine-id");
    world.write("var/home/core.txt", "mine");
    world.write("var/lib/orlop/reset", "keep:machine-id\n");
    world.run();
    assert_eq!(world.read("var/home/core.txt"), "mine", "the machine runs");
    // The next start finds a new /run.
    fs::remove_file(world.path("run/orlop/reset-looked")).unwrap();
    world.run();
    assert!(!world.path("var/home/core.txt").exists());
    assert!(!world.path("var/lib/orlop/reset").exists());
    assert!(
        world.path("var/home").is_dir(),
        "what has to be there is made anew"
    );
    assert_eq!(world.read("etc/machine-id"), number);
}
