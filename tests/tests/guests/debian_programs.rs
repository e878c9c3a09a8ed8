//! Debian's own nginx, redis, PostgreSQL and OpenSSH, with the unit files of their packages as they are.
//!
//! The packages, and the libraries that they need, are unpacked onto a disk of its own. In the guest they lie below the
//! image's `/usr`; what the packages' scripts do at an installation (users, directories, copies of samples) is done by one
//! script, which changes no unit file.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use orlop_qemu::guest::BOOT_PATIENCE;
use orlop_qemu::image::Project;
use orlop_tests::Scenario;

/// The programs, what they are run with, and the libraries of all of them.
const PACKAGES: &[&str] = &[
    "nginx",
    "nginx-common",
    "redis-server",
    "redis-tools",
    "postgresql-15",
    "postgresql-client-15",
    "postgresql-client-common",
    "postgresql-common",
    "openssh-client",
    "openssh-server",
    "openssh-sftp-server",
    "bash",
    "coreutils",
    "dpkg",
    "libc-bin",
    "libjson-perl",
    "libperl5.36",
    "perl",
    "perl-base",
    "perl-modules-5.36",
    "procps",
    "tzdata",
    "libacl1",
    "libatomic1",
    "libattr1",
    "libaudit1",
    "libc6",
    "libcap-ng0",
    "libcap2",
    "libcom-err2",
    "libcrypt1",
    "libdb5.3",
    "libedit2",
    "libbsd0",
    "libmd0",
    "libffi8",
    "libgcc-s1",
    "libgcrypt20",
    "libgdbm6",
    "libgmp10",
    "libgnutls30",
    "libgpg-error0",
    "libgssapi-krb5-2",
    "libhiredis0.14",
    "libhogweed6",
    "libicu72",
    "libidn2-0",
    "libjemalloc2",
    "libk5crypto3",
    "libkeyutils1",
    "libkrb5-3",
    "libkrb5support0",
    "libldap-2.5-0",
    "liblua5.1-0",
    "liblz4-1",
    "liblzf1",
    "liblzma5",
    "libnettle8",
    "libnsl2",
    "libp11-kit0",
    "libpam0g",
    "libpcre2-8-0",
    "libpq5",
    "libreadline8",
    "libsasl2-2",
    "libselinux1",
    "libssl3",
    "libstdc++6",
    "libsystemd0",
    "libtasn1-6",
    "libtinfo6",
    "libtirpc3",
    "libunistring2",
    "libuuid1",
    "libwrap0",
    "libxml2",
    "libxslt1.1",
    "libzstd1",
    "lua-bitop",
    "lua-cjson",
    "zlib1g",
];

const USER_DATA: &str = include_str!("debian_programs.yaml");

/// What scripts in the guest begin with: a property of a unit, a wait for something to become true, a count of processes.
const PRELUDE: &str = "\
show() { systemctl show -P $2 $1; }
until_true() { n=300; until eval \"$1\"; do n=$((n - 1)); [ $n -gt 0 ] || { echo \"never: $1\"; return 1; }; sleep 0.1; done; }
named() { cat /proc/[0-9]*/comm 2>/dev/null | grep -c \"^$1\"; }
is_new() { new=$(show $1 MainPID); [ -n \"$new\" ] && [ \"$new\" != 0 ] && [ \"$new\" != $2 ]; }
unchanged() { cmp -s /run/debian/usr/lib/systemd/system/${2:-$1} $(show $1 FragmentPath) && echo unchanged || echo \"$1 is $(show $1 FragmentPath)\"; }
";

fn as_root(script: &str) -> String {
    format!("sudo bash -s 2>&1 <<'END'\n{PRELUDE}{script}\nexit 0\nEND")
}

/// Runs `script` as root; it prints just these lines.
fn prints(scenario: &mut Scenario, sentence: &str, script: &str, lines: &[&str]) {
    scenario.prints(sentence, &as_root(script), lines);
}

/// Runs a program of the host that has to succeed.
fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("start {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The packages, downloaded once.
fn packages(project: &Project) -> Result<Vec<PathBuf>> {
    let directory = project.path("build/debian-programs");
    std::fs::create_dir_all(&directory)?;
    let find = |name: &str| -> Result<Option<PathBuf>> {
        let prefix = format!("{name}_");
        let mut found = None;
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            if file.starts_with(&prefix) && file.ends_with(".deb") {
                found = Some(path.clone());
            }
        }
        Ok(found)
    };
    let mut absent = Vec::new();
    for name in PACKAGES {
        if find(name)?.is_none() {
            absent.push(*name);
        }
    }
    if !absent.is_empty() {
        run(Command::new("apt-get")
            .args(["-qq", "-o", "APT::Sandbox::User=root", "download"])
            .args(&absent)
            .current_dir(&directory))?;
    }
    PACKAGES
        .iter()
        .map(|name| find(name)?.with_context(|| format!("apt-get left no archive of {name}")))
        .collect()
}

/// Writes a disk with all of them unpacked.
fn disk(project: &Project, path: &Path) -> Result<()> {
    let tree = path.with_extension("tree");
    if tree.exists() {
        std::fs::remove_dir_all(&tree)?;
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        std::fs::create_dir_all(tree.join("usr").join(name))?;
        std::os::unix::fs::symlink(format!("usr/{name}"), tree.join(name))?;
    }
    for package in packages(project)? {
        let mut unpack = Command::new("sh");
        // What the packages have in /bin and /lib goes to where those lead.
        let script = "dpkg-deb --fsys-tarfile \"$0\" | tar -x --keep-directory-symlink --no-same-owner -C \"$1\" \
                      --exclude=./usr/share/doc --exclude=./usr/share/man --exclude=./usr/share/locale";
        run(unpack.args(["-c", script]).arg(&package).arg(&tree))?;
    }
    run(Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-E"])
        .args(["root_owner=0:0", "-L", "debian", "-d"])
        .arg(&tree)
        .arg(path)
        .arg("600M")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin"))?;
    Ok(std::fs::remove_dir_all(&tree)?)
}

#[test]
#[ignore = "slow; make torture runs it"]
fn torture_debians_programs_run_with_their_own_unit_files() {
    let mut port = Scenario::start("test-debian", USER_DATA, |machine| {
        machine.memory_mib = 1024;
        let file = machine.directory.join("debian.img");
        disk(&Project::here(), &file)?;
        machine.more.extend(
            [
                "-drive",
                "if=none,id=debian,format=raw,readonly=on,file=debian.img",
                "-device",
                "virtio-blk-pci,drive=debian,serial=debian",
            ]
            .map(str::to_owned),
        );
        Ok(())
    });
    port.need("the machine comes up and lets its operator in", |guest| {
        guest.wait_for_ssh().map(|_| ())
    });
    port.need(
        "the packages are there, set up as their scripts do it",
        |guest| {
            let said = guest
                .ssh()?
                .run(&as_root("sh -e /etc/debian/install && echo installed"))?;
            ensure!(said.lines().last() == Some("installed"), "{said}");
            Ok(())
        },
    );
    prints(
        &mut port,
        "every unit file of the packages loads without a word",
        "cd /run/debian/usr/lib/systemd/system; ls nginx.service redis-server*.service postgresql*.service pg_*.service pg_*.timer ssh.* rescue-ssh.target | wc -l
         orlop unit verify nginx.service redis-server*.service postgresql*.service pg_*.service pg_*.timer ssh.* rescue-ssh.target; echo $?",
        &["15", "0"],
    );
    nginx(&mut port);
    redis(&mut port);
    postgresql(&mut port);
    openssh(&mut port);
    port.cut_power();
    port.finish();
}

fn nginx(port: &mut Scenario) {
    prints(
        port,
        "nginx serves its page, reloads, is killed without being restarted, and stops without a process left",
        "systemctl start nginx; echo $?; unchanged nginx.service; systemctl is-active nginx
         wget -q -O - http://127.0.0.1/ | grep -o '<title>.*</title>'
         [ $(show nginx MainPID) = $(cat /run/nginx.pid) ] && echo main
         old=$(show nginx MainPID); systemctl reload nginx; echo $?; [ $(show nginx MainPID) = $old ] && echo same
         systemctl status nginx | grep -c 'nginx: master process'
         systemctl stop nginx; echo $?; systemctl is-active nginx; named nginx
         systemctl start nginx; systemctl is-active nginx; kill -9 $(show nginx MainPID)
         until_true '[ \"$(systemctl is-active nginx)\" = failed ]'; show nginx Result; until_true '[ $(named nginx) = 0 ]' && echo gone
         systemctl reset-failed nginx",
        &[
            "0",
            "unchanged",
            "active",
            "<title>Welcome to nginx!</title>",
            "main",
            "0",
            "same",
            "1",
            "0",
            "inactive",
            "0",
            "active",
            "signal",
            "gone",
        ],
    );
}

fn redis(port: &mut Scenario) {
    prints(
        port,
        "redis says itself that it is ready, answers, keeps what it was told, and is restarted after kill -9",
        "systemctl start redis-server; echo $?; unchanged redis-server.service; systemctl is-active redis-server
         redis-cli ping; redis-cli set ship orlop; redis-cli save
         systemctl status redis-server | grep -c 'Ready to accept connections'
         grep -c '^Uid:.990' /proc/$(show redis-server MainPID)/status; grep '^Seccomp:' /proc/$(show redis-server MainPID)/status
         wc -l </proc/$(show redis-server MainPID)/uid_map
         old=$(show redis-server MainPID); kill -9 $old; until_true \"is_new redis-server $old\"
         until_true '[ \"$(redis-cli ping 2>/dev/null)\" = PONG ]'; redis-cli get ship; systemctl is-active redis-server
         systemctl stop redis-server; echo $?; systemctl is-active redis-server; named redis-server; ls -d /run/redis 2>/dev/null",
        &[
            "0",
            "unchanged",
            "active",
            "PONG",
            "OK",
            "OK",
            "1",
            "1",
            "Seccomp:\t2",
            "2",
            "orlop",
            "active",
            "0",
            "inactive",
            "0",
        ],
    );
}

fn postgresql(port: &mut Scenario) {
    prints(
        port,
        "postgresql.service brings its cluster up, which answers a query, and takes it down",
        "systemctl start postgresql; echo $?; systemctl is-active postgresql postgresql@15-main
         unchanged postgresql@15-main.service postgresql@.service
         until_true 'pg_isready -q -h /run/postgresql'; systemctl start ask-postgresql; cat /run/postgresql/answer
         [ $(show postgresql@15-main MainPID) = $(head -n 1 /run/postgresql/15-main.pid) ] && echo main
         cat /proc/$(show postgresql@15-main MainPID)/oom_score_adj
         systemctl reload postgresql@15-main; echo $?
         systemctl stop postgresql; echo $?; until_true '[ \"$(systemctl is-active postgresql@15-main)\" = inactive ]'; systemctl is-active postgresql; named postgres
         systemctl start postgresql@15-main; systemctl is-active postgresql@15-main; kill -9 $(show postgresql@15-main MainPID)
         until_true '[ \"$(systemctl is-active postgresql@15-main)\" = failed ]'; show postgresql@15-main Result; until_true '[ $(named postgres) = 0 ]' && echo gone",
        &[
            "0",
            "active",
            "active",
            "unchanged",
            "42",
            "main",
            "-900",
            "0",
            "0",
            "inactive",
            "0",
            "active",
            "signal",
            "gone",
        ],
    );
}

fn openssh(port: &mut Scenario) {
    port.need(
        "OpenSSH takes the port over from the image's server, and its socket starts it",
        |guest| {
            let command = as_root("systemctl --no-block start hand-over; echo asked");
            // The connection goes with the server that it is through.
            guest.ssh()?.output(&command)?;
            guest.wait_for_console("handed over", 0, BOOT_PATIENCE)?;
            guest.wait_for_ssh().map(|_| ())
        },
    );
    prints(
        port,
        "it is Debian's, started by ssh.socket, and restarted after kill -9",
        "exec 3<>/dev/tcp/127.0.0.1/22; head -n 1 <&3 | grep -o '^SSH-2.0-OpenSSH_9.2p1 Debian'; exec 3>&-
         systemctl is-active ssh.socket ssh.service; unchanged ssh.service; unchanged ssh.socket
         systemctl status ssh.service | grep -q 'sshd: /usr/sbin/sshd -D' && echo shown
         old=$(show ssh.service MainPID); kill -9 $old; until_true \"is_new ssh.service $old\"
         until_true '[ \"$(systemctl is-active ssh.service)\" = active ]'
         exec 3<>/dev/tcp/127.0.0.1/22; head -n 1 <&3 | grep -o '^SSH-2.0-OpenSSH_9.2p1 Debian'; exec 3>&-
         new=$(show ssh.service MainPID); systemctl reload ssh.service; echo $?; [ $(show ssh.service MainPID) = $new ] && echo same
         systemctl stop ssh.socket ssh.service; echo $?; systemctl is-active ssh.socket ssh.service; [ -d /proc/$new ] || echo gone
         systemctl start ssh.service; echo $?; systemctl is-active ssh.service",
        &[
            "SSH-2.0-OpenSSH_9.2p1 Debian",
            "active",
            "active",
            "unchanged",
            "unchanged",
            "shown",
            "SSH-2.0-OpenSSH_9.2p1 Debian",
            "0",
            "same",
            "0",
            "inactive",
            "inactive",
            "gone",
            "0",
            "active",
        ],
    );
}
